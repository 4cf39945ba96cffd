"""Classes of processors, and what their sums of bytes do."""

from __future__ import annotations

from pathlib import Path

import pytest

from artifacts import runtime
from artifacts.isa import isa_class, saturates

AVX2 = "flags\t\t: fpu sse2 avx avx2 fma\n"
ZEN4 = "flags\t\t: fpu sse2 avx avx2 avx512f avx512bw avx512_vnni\n"
ALDER_LAKE = "flags\t\t: fpu sse2 avx avx2 avx_vnni\n"
SKYLAKE = "flags\t\t: fpu sse2 avx avx2 avx512f avx512bw\n"
GRAVITON = "Features\t: fp asimd asimddp\n"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (AVX2, "x86_64-avx2"),
        (SKYLAKE, "x86_64-avx512"),
        (ZEN4, "x86_64-avx512-vnni"),
        (ALDER_LAKE, "x86_64-avx-vnni"),
        (GRAVITON, "aarch64-dotprod"),
        ("", "x86_64-base"),
    ],
)
def test_only_x86_without_vnni_saturates(tmp_path: Path, flags: str, expected: str) -> None:
    """The class follows from the flags that Linux tells, and what sums do from the class."""
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\n{flags}")
    isa = isa_class(cpuinfo, expected.rpartition("-")[0].split("-")[0])
    assert isa == expected
    exact = {"x86_64-avx512-vnni", "x86_64-avx-vnni", "aarch64-dotprod"}
    assert saturates(isa) is (isa not in exact)


@pytest.mark.parametrize("isa", ["x86_64-avx2", "x86_64-avx512-vnni"])
def test_weights_are_converted_only_where_sums_saturate(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, isa: str
) -> None:
    """With VNNI the conversion would cost half of the speed."""
    import onnxruntime as ort

    asked: list[str] = []

    class Options(ort.SessionOptions):  # type: ignore[misc]
        def add_session_config_entry(self, key: str, value: str) -> None:
            asked.append(key)
            super().add_session_config_entry(key, value)

    monkeypatch.setattr(ort, "SessionOptions", Options)
    monkeypatch.setattr(runtime, "isa_class", lambda: isa)
    with pytest.raises(runtime.SessionError):
        runtime.open_runtime(tmp_path / "missing.onnx", runtime.Threads(count=1))
    assert ("session.x64quantprecision" in asked) is saturates(isa)
