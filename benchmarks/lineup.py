"""The contenders of the serving bench by name, and how they are called in tables.

Owns names, chains and which of them are shown to be right before they are compared. Knows nothing
of turns.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from benchmarks.child import Child
from benchmarks.contenders import Contender, Place
from benchmarks.generate_peer import Peer
from benchmarks.ours import Engine, Server

BASELINE = "baseline"
INT8 = "int8"
INT4 = "int4"
INT4_LARGE = "int4-b128"
ENGINE_BASELINE = "engine-baseline"
ENGINE_INT4 = "engine-int4"
TRANSFORMERS = "transformers"
OPTIMUM = "optimum"

LABELS = {
    BASELINE: "this server, float32",
    INT8: "this server, int8 dynamic",
    INT4: "this server, int4 in blocks of 32",
    INT4_LARGE: "this server, int4 in blocks of 128",
    ENGINE_BASELINE: "engine in-process, float32",
    ENGINE_INT4: "engine in-process, int4 in blocks of 32",
    TRANSFORMERS: "transformers generate, float32",
    OPTIMUM: "optimum ORTModelForCausalLM, float32",
}
CHAINS: dict[str, list[dict[str, Any]]] = {
    BASELINE: [],
    INT8: [{"quantize": {"method": "dynamic"}}],
    INT4: [{"quantize": {"method": "weight_only", "bits": 4, "block_size": 32}}],
    INT4_LARGE: [{"quantize": {"method": "weight_only", "bits": 4, "block_size": 128}}],
}
ENGINES = {ENGINE_BASELINE: BASELINE, ENGINE_INT4: INT4}
"""Each in-process engine, and the server whose artifact it runs."""

FLOAT32 = (TRANSFORMERS, OPTIMUM, BASELINE, ENGINE_BASELINE)
"""These must generate the same tokens; the first one is the reference."""


def lineup(
    place: Place, *, client: Child, optimum: Path | None, without: Collection[str]
) -> list[Contender]:
    """All contenders, those next to each other that are compared most closely.

    Args:
        place: Where they live.
        client: The gRPC client.
        optimum: Interpreter with optimum-onnx; None leaves that peer out.
        without: Names to leave out.
    """
    contenders: list[Contender] = []
    for name, chain in CHAINS.items():
        if name in without:
            continue
        server = Server(name, place, chain=chain, client=client)
        contenders.append(server)
        contenders += [
            Engine(engine, place, server=server)
            for engine, served in ENGINES.items()
            if served == name and engine not in without
        ]
    if TRANSFORMERS not in without:
        contenders.append(Peer(TRANSFORMERS, place, worker="transformers_peer", also_batched=True))
    if optimum is not None:
        contenders.append(
            Peer(
                OPTIMUM,
                place,
                worker="optimum_peer",
                python=optimum,
                exported=place.folder / "optimum-export",
            )
        )
    return contenders
