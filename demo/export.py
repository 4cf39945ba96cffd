"""Write the demo model's folder from the last checkpoint of a training run.

Owns which files the folder holds and the 16-bit format of the stored weights. Knows nothing about
training. Each file is replaced in one step, so readers never see half of one.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch.nn import functional

from demo import corpus, path, tokenizer, train

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

FORMATS = {"float16": torch.float16, "bfloat16": torch.bfloat16}

# Settings of other kinds of model, which the configuration class writes along with this one's.
IRRELEVANT = frozenset(
    {
        "_name_or_path",
        "chunk_size_feed_forward",
        "id2label",
        "is_encoder_decoder",
        "label2id",
        "output_attentions",
        "output_hidden_states",
        "pretraining_tp",
        "problem_type",
        "return_dict",
    }
)


def divergence(model: LlamaForCausalLM, dtype: torch.dtype, ids: torch.Tensor) -> float:
    """Return the mean KL (nats per token) that storing `model`'s weights as `dtype` causes.

    `ids` is [rows, length]; both passes compute in float32, so only the rounding counts.
    """
    rounded = train.build()
    rounded.load_state_dict({k: v.to(dtype).float() for k, v in model.state_dict().items()})
    with torch.inference_mode():
        exact = functional.log_softmax(model(input_ids=ids).logits, -1).flatten(0, 1)
        stored = functional.log_softmax(rounded(input_ids=ids).logits, -1).flatten(0, 1)
        loss = functional.kl_div(stored, exact, reduction="batchmean", log_target=True)
    return float(loss)


def export(work: Path, folder: Path) -> dict[str, object]:
    """Write `folder` from the run in `work`; return what was chosen and how large it is."""
    saved = torch.load(work / "last.pt", weights_only=True)
    model = train.build().eval()
    model.load_state_dict(saved["model"])
    encoder = train.load_tokenizer(work)
    text = "\n".join(document.text for document in corpus.heldout_documents()[:8])
    ids = torch.tensor(encoder.encode(text).ids[: 8 * 1024]).view(8, 1024)
    loss = {name: divergence(model, dtype, ids) for name, dtype in FORMATS.items()}
    chosen = min(loss, key=lambda name: loss[name])

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        draft = Path(name)
        tokenizer.save(encoder, draft, train.CONTEXT)
        write_settings(draft, chosen)
        # The tied output matrix is left out: loaders rebuild it from the embedding.
        weights = {
            key: tensor.to(FORMATS[chosen]).contiguous()
            for key, tensor in model.state_dict().items()
            if key != "lm_head.weight"
        }
        save_file(weights, draft / "model.safetensors", metadata={"format": "pt"})
        for file in draft.iterdir():
            file.chmod(0o644)
            file.replace(folder / file.name)
    return {
        "step": saved["step"],
        "training_seconds": round(saved["seconds"]),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "kl": loss,
        "dtype": chosen,
        "bytes": sum(file.stat().st_size for file in folder.iterdir()),
    }


def write_settings(folder: Path, dtype: str) -> None:
    """Write the model's configuration and its generation defaults, stored as `dtype`."""
    eot, pad, end = map(corpus.SPECIAL_TOKENS.index, (corpus.EOT, corpus.PAD, corpus.END))
    whole = train.configuration().to_dict()
    configuration = {key: whole[key] for key in sorted(whole.keys() - IRRELEVANT)}
    configuration.update(architectures=["LlamaForCausalLM"], dtype=dtype)
    generation = {
        "bos_token_id": eot,
        "eos_token_id": [eot, end],
        "pad_token_id": pad,
        "do_sample": True,
        "temperature": 0.8,
        "top_p": 0.95,
    }
    for name, content in (("config", configuration), ("generation_config", generation)):
        text = json.dumps(content, indent=2) + "\n"
        (folder / f"{name}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the demo model's folder.")
    parser.add_argument("--work", type=Path, required=True, help="folder of the run's checkpoints")
    parser.add_argument("--folder", type=Path, default=path())
    options = parser.parse_args()
    print(json.dumps(export(options.work, options.folder), indent=2))
