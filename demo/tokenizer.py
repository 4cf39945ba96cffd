"""The demo model's tokenizer: a byte-level BPE learnt from the training split.

Owns the split pattern, the special tokens' ids and the tokenizer files of the model folder.
Knows nothing about the model's weights or shape, nor where the training text comes from.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from demo.corpus import ASSISTANT, END, EOT, PAD, SPECIAL_TOKENS, SYSTEM, USER

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

VOCABULARY = 4096

# Newlines and indentation are pieces of their own: a prompt that stops after "):" or after a
# newline is then cut exactly where training text is, instead of inside a longer learnt token.
PATTERN = r"[\r\n]+| {2,}|[^\r\n\p{L}\p{N}_]?[\p{L}_]+|\p{N}{1,3}| ?[^\s\p{L}\p{N}_]+|\s+"

CHAT_TEMPLATE = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    f"{{%- if message.role == 'system' %}}{{{{- '{SYSTEM}' }}}}"
    f"{{%- elif message.role == 'assistant' %}}{{{{- '{ASSISTANT}' }}}}"
    f"{{%- else %}}{{{{- '{USER}' }}}}{{%- endif %}}"
    f"{{{{- message.content + '{END}' }}}}"
    "{%- endfor %}"
    f"{{%- if add_generation_prompt %}}{{{{- '{ASSISTANT}' }}}}{{%- endif %}}"
)


def learn(texts: Iterable[str]) -> Tokenizer:
    """Learn a tokenizer of VOCABULARY entries from `texts`; the special tokens get ids 0 up."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path, context: int) -> None:
    """Write the tokenizer, its configuration and the chat template into a model folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    configuration = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "bos_token": EOT,
        "eos_token": EOT,
        "pad_token": PAD,
        "extra_special_tokens": [SYSTEM, USER, ASSISTANT, END],
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
    }
    text = json.dumps(configuration, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE + "\n", encoding="utf-8")
