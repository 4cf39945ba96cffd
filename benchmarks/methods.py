"""``make bench-methods``: every method alone and in combination on the demo model, as one table.

Owns which figures the table shows; ``inference-unlimited compare`` measures them on the variants of
``methods.yaml`` and writes its whole report beside. Knows nothing of how figures are taken.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

CONFIG = Path(__file__).with_name("methods.yaml")
COLUMNS = (
    "variant",
    "size, MB",
    "decoding, 1 stream",
    "decoding, 8 streams",
    "prefill",
    "KL, nats",
    "agreement",
    "perplexity",
)
_RATIOS = (
    "decode_1_tokens_per_second",
    "decode_8_tokens_per_second",
    "prefill_tokens_per_second",
)


def table(report: Mapping[str, Any]) -> Iterator[str]:
    """The lines of a Markdown table from the content of a ``report.json``.

    Speeds are ratios to the baseline, with the ends of their intervals of 95 % where there were
    enough rounds; the baseline's own are tokens per second.
    """
    yield _row(COLUMNS)
    yield _row(["---", *["---:"] * (len(COLUMNS) - 1)])
    for name, variant in report["variants"].items():
        if variant["failure"] is not None:
            yield _row([name, variant["failure"], *[""] * (len(COLUMNS) - 2)])
            continue
        quality = variant["quality"]
        yield _row(
            [
                name,
                f"{variant['size_bytes'] / 1e6:.1f}",
                *(_speed(variant, key) for key in _RATIOS),
                f"{quality['kl_mean']['value']:.4f}",
                f"{quality['top1_agreement']['value']:.1%}",
                f"{quality['perplexity']['value']:.2f}",
            ]
        )


def notes(report: Mapping[str, Any]) -> Iterator[str]:
    """Where and how it was measured, and what could not be."""
    machine = report["machine"]
    yield (
        f"{report['began']}, {machine['processor']} ({machine['isa']}), {machine['cores']} cores, "
        f"onnxruntime {machine['libraries'].get('onnxruntime', '?')}; {report['rounds']} rounds in "
        "turns."
    )
    yield from report["remarks"]
    yield from (f"{name} failed: {error}" for name, error in report["failed"].items())


def main() -> int:
    """Compare, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/methods"))
    own, passed_on = parser.parse_known_args()
    command = [sys.executable, "-m", "server.cli", "compare", str(CONFIG), "--out", str(own.out)]
    status = subprocess.call([*command, *passed_on])
    content = own.out / "report.json"
    if status and not content.is_file():
        return status
    report = json.loads(content.read_text(encoding="utf-8"))
    print("\n".join(table(report)))
    print()
    print("\n".join(f"- {note}" for note in notes(report)))
    return status


def _speed(variant: Mapping[str, Any], key: str) -> str:
    compared = variant["comparisons"].get(key)
    if compared is None:
        value = variant["speeds"][key]["value"]
        return f"{value:.0f} tokens/s"
    told = f"{compared['value']:.2f}x"
    if compared["low"] is None:
        return told
    return f"{told} [{compared['low']:.2f}, {compared['high']:.2f}]"


def _row(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
