"""What the processor can do, as the kernel tells it and oneDNN is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tfswa.runtime import machine


@pytest.mark.parametrize(
    ("flags", "cap", "found"),
    [
        ("fpu avx2 avx512f", "", "saturating"),
        ("fpu avx2 avx_vnni", "", "avx_vnni"),
        ("avx512_vnni avx512_bf16", "", "avx512_vnni"),
        ("avx512_vnni amx_int8 amx_bf16", "", "amx_int8"),
        ("avx512_vnni amx_int8", "avx512_core_bf16", "avx512_vnni"),
        ("avx512_vnni amx_int8", "AVX512_CORE", "saturating"),
        ("avx512_vnni amx_int8", "a newer one", "amx_int8"),
        (None, "", "unknown"),
    ],
)
def test_instructions_for_8_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str | None, cap: str, found: str
) -> None:
    told = "processor\t: 0\nmodel name\t: Any\n" + (
        f"flags\t\t: {flags}\n" if flags else "Features\t: asimd\n"
    )
    (tmp_path / "cpuinfo").write_text(told)
    monkeypatch.setattr(machine, "Path", lambda name: tmp_path / Path(name).name)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", cap)
    assert machine.int8_instructions() == found
    (tmp_path / "cpuinfo").unlink()
    assert machine.int8_instructions() == "unknown"
