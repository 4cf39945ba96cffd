"""Who meets in the bench against peers: recipes of ours, and rungs of others.

Owns names, recipes and pairs. A row of ours may be compared with a rung of a peer only where it is
as good on the demo model (``QUALITY_FACTOR``). Knows nothing of turns.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.child import Child
from benchmarks.contenders import ROOT, Contender, Place
from benchmarks.environments import python_with
from benchmarks.generate_peer import Peer
from benchmarks.llama_cpp import LlamaServer, build
from benchmarks.optimum_environment import optimum_python
from benchmarks.ours import Server

_FLOAT = 1e-9  # nats: two that both compute in float32 are as good as each other
QUALITY_FACTOR = 1.1
"""The KL to float32 of a row of ours, over that of the rung that it stands against, at most."""
INT4 = "ours-int4-b32"
GPTQ = "ours-gptq-b128"
GPTQ_HEAD4 = "ours-gptq-b128-head4"
ADAPTIVE = "ours-gptq-b128-head4-adaptive"
INT8 = "ours-int8-b32"
INT8_GPTQ = "ours-int8-gptq-b64"
INT8_ROWS = "ours-int8-rows"
INT8_WIDE = "ours-int8-rows-wide64"
INT8_FITTED = "ours-int8-rows-gptq"
FLOAT32 = "ours-float32"
_GPTQ = {
    "method": "weight_only",
    "bits": 4,
    "block_size": 128,
    "algorithm": "gptq",
    "forms": "by_role",
}
_HEAD4 = {**_GPTQ, "lm_head_bits": 4}
_INT8 = {"method": "weight_only", "bits": 8}
_ROWS = {"method": "dynamic"}
RECIPES: dict[str, list[dict[str, Any]]] = {
    INT4: [{"quantize": {"method": "weight_only", "bits": 4, "block_size": 32}}],
    GPTQ: [{"quantize": _GPTQ}],
    GPTQ_HEAD4: [{"quantize": _HEAD4}],
    ADAPTIVE: [{"quantize": {**_HEAD4, "forms": "adaptive"}}],
    INT8: [{"quantize": {**_INT8, "block_size": 32}}],
    INT8_GPTQ: [{"quantize": {**_INT8, "block_size": 64, "algorithm": "gptq"}}],
    INT8_ROWS: [{"quantize": _ROWS}],
    INT8_WIDE: [{"quantize": {**_ROWS, "wide_block_size": 64}}],
    INT8_FITTED: [
        {"smooth": {"method": "smoothquant"}},
        {"quantize": {**_ROWS, "algorithm": "gptq"}},
    ],
    FLOAT32: [],
}
"""Our rows, as chains."""
REPRODUCIBLE = tuple(name for name in RECIPES if name != ADAPTIVE)
"""Rows whose results follow from the request alone; the others are shown beside them."""

_CALIBRATION = ROOT / "demo" / "calibration.jsonl"
_OPENVINO = "import openvino_genai; from optimum.intel import OVModelForCausalLM"
# Its wheel fits only the torch that is published beside it, and nobody looks at pictures here.
_NO_PICTURES = ("torchvision",)


@dataclass(frozen=True, slots=True)
class Rung:
    """One way of a peer to serve the model.

    Attributes:
        label: In tables.
        family: The peer it is of.
        batches: Whether requests come and go while others run.
    """

    label: str
    family: str
    batches: bool = False


RUNGS = {
    "llama.cpp-Q4_0": Rung("llama.cpp Q4_0", "llama.cpp", batches=True),
    "llama.cpp-Q4_K_M": Rung("llama.cpp Q4_K_M", "llama.cpp", batches=True),
    "llama.cpp-Q8_0": Rung("llama.cpp Q8_0", "llama.cpp", batches=True),
    "openvino-int4": Rung("OpenVINO GenAI int4, groups of 32", "openvino", batches=True),
    "openvino-int8": Rung("OpenVINO GenAI int8", "openvino", batches=True),
    "genai-int4": Rung("onnxruntime-genai int4, blocks of 32", "genai"),
    "optimum": Rung("optimum ORTModelForCausalLM, float32", "optimum"),
    "transformers": Rung("transformers, float32", "transformers"),
}
NAMES = (*RECIPES, *RUNGS)


def laid_out(chain: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A chain whose weights lie as this one's do, made without looking at any text.

    GPTQ chooses among the same numbers as rounding does, and smoothing leaves a graph as it is, so
    a step costs the same; and in random weights there is nothing to fit.
    """
    return [
        {stage: {**fields, **({"algorithm": "rtn"} if "algorithm" in fields else {})}}
        for item in chain
        for stage, fields in item.items()
        if stage != "smooth"
    ]


def is_fitted(name: str) -> bool:
    """Whether a row looks at a text while it is built."""
    return name in RECIPES and laid_out(RECIPES[name]) != RECIPES[name]


def label(name: str) -> str:
    """How one is called in tables."""
    return RUNGS[name].label if name in RUNGS else f"this server, {name.removeprefix('ours-')}"


def streams(name: str) -> bool:
    """Whether requests come and go while others run."""
    return name in RECIPES or RUNGS[name].batches


def as_good(ours: float, rung: float) -> bool:
    """Whether a row of ours may be compared with a rung, by their KLs to float32 in nats."""
    return ours <= QUALITY_FACTOR * rung + _FLOAT


def chosen_for_load(
    capacities: Mapping[str, float], quality: Mapping[str, float]
) -> dict[str, float]:
    """Of each peer the rung that can take most, and of ours the best row that is as good as those.

    Args:
        capacities: By name, requests per second.
        quality: By name, KL to float32 in nats.
    """
    best: dict[str, str] = {}
    for name in sorted(capacities, key=capacities.__getitem__):
        if name in RUNGS:
            best[RUNGS[name].family] = name
    rows = [
        name
        for name in capacities
        if name in REPRODUCIBLE
        and all(
            as_good(quality[name], quality[rung]) if {name, rung} <= quality.keys() else False
            for rung in best.values()
        )
    ]
    chosen = [*best.values(), *sorted(rows, key=capacities.__getitem__)[-1:]]
    return {name: capacities[name] for name in chosen}


class Lineup:
    """Makes contenders; what they need is set up once, by the first that needs it.

    Args:
        folder: For environments of peers.
        grpc_client: The client of ours.
        llama_client: The client of llama.cpp's server.
        without: Names to leave out.
    """

    def __init__(
        self, folder: Path, *, grpc_client: Child, llama_client: Child, without: Collection[str]
    ) -> None:
        self._folder = folder
        self._grpc_client = grpc_client
        self._llama_client = llama_client
        self._names = [name for name in NAMES if name not in without]

    def contenders(
        self, place: Place, max_length: int, *, fits: bool, needed: Collection[str] = ()
    ) -> list[Contender]:
        """All of them for one model.

        Args:
            place: Where they live, and of which model.
            max_length: Tokens of a prompt and its answer, at most.
            fits: Whether the model is a trained one, whose weights can be fitted to a text.
            needed: Names to give though they are left out.

        Raises:
            ChildError: An environment cannot be set up.
        """
        names = [name for name in NAMES if name in self._names or name in needed]
        return [self._contender(name, place, max_length, fits=fits) for name in names]

    def _contender(self, name: str, place: Place, max_length: int, *, fits: bool) -> Contender:
        if name in RECIPES:
            chain = RECIPES[name] if fits else laid_out(RECIPES[name])
            return Server(
                name,
                place,
                chain=chain,
                client=self._grpc_client,
                max_length=max_length,
                calibration=_CALIBRATION if fits else None,
            )
        exported = place.folder / "exports" / name
        match RUNGS[name].family:
            case "llama.cpp":
                return LlamaServer(
                    name,
                    place,
                    tools=build(self._folder / "llama.cpp"),
                    rung=name.removeprefix("llama.cpp-"),
                    client=self._llama_client,
                    context=max_length,
                )
            case "openvino":
                bits = 4 if name.endswith("int4") else 8
                return Peer(
                    name,
                    place,
                    worker="openvino_peer",
                    python=self._python("openvino", _OPENVINO, without=_NO_PICTURES),
                    exported=exported,
                    load={"bits": bits},
                )
            case "genai":
                python = self._python("genai", "import onnxruntime_genai, onnx_ir")
                return Peer(name, place, worker="genai_peer", python=python, exported=exported)
            case "optimum":
                python = optimum_python(ROOT, None)
                return Peer(
                    name,
                    place,
                    worker="optimum_peer",
                    python=python,
                    exported=exported,
                    also_batched=True,
                )
            case _:
                return Peer(name, place, worker="transformers_peer", also_batched=True)

    def _python(self, environment: str, check: str, *, without: Sequence[str] = ()) -> Path:
        requirements = ROOT / "benchmarks" / "requirements" / f"{environment}.txt"
        return python_with(self._folder / environment, requirements, check, without=without)
