"""What measuring a song takes against what was measured, and what is free as the system tells it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tfswa.runtime.evaluation import memory
from tfswa.runtime.model.spec import ModelSpec, StftSpec
from tfswa.runtime.songs.finding import SongFiles

STEMS = ("vocals", "drums", "bass", "accompaniment")
GIB = 1 << 30


@pytest.mark.parametrize(
    ("stems", "seconds", "measured"),
    [(2, 30, 782e6), (4, 30, 1432e6), (2, 60, 1267e6), (4, 60, 2228e6)],
)
def test_what_a_song_takes(tiny_spec: ModelSpec, stems: int, seconds: float, measured: float) -> None:
    spec = replace(tiny_spec, stems=STEMS[-stems:], stft=StftSpec(4096, 1024, 44_100))
    told = memory.worker_bytes(round(seconds * 44_100), spec)
    assert measured < told < 1.25 * measured


def test_one_stem_is_measured_beside_the_rest(tiny_spec: ModelSpec) -> None:
    one, two = (replace(tiny_spec, stems=STEMS[-count:]) for count in (1, 2))
    assert memory.worker_bytes(1000, one) == memory.worker_bytes(1000, two)


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for files of the kernel: 8 GiB available, no container."""
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    cgroups = [(tmp_path / folder.name, limit, usage) for folder, limit, usage in memory.CGROUPS]
    monkeypatch.setattr(memory, "CGROUPS", cgroups)
    text = f"MemTotal: {9 << 20} kB\nMemFree: 5 kB\nMemAvailable:   {8 << 20} kB\nBuffers: 7 kB\n"
    (tmp_path / "meminfo").write_text(text)
    return tmp_path


def container(folder: Path, limit: str, usage: str, stat: str) -> None:
    folder.mkdir()
    memory_names = ("memory.max", "memory.current") if folder.name == "cgroup" else None
    names = memory_names or ("memory.limit_in_bytes", "memory.usage_in_bytes")
    for name, text in zip((*names, "memory.stat"), (limit, usage, stat), strict=True):
        (folder / name).write_text(f"{text}\n")


class TestFree:
    def test_of_the_system(self, system: Path) -> None:
        assert memory.free_bytes() == 8 * GIB

    @pytest.mark.parametrize(("folder", "prefix"), [("cgroup", ""), ("memory", "total_")])
    def test_of_a_container(self, system: Path, folder: str, prefix: str) -> None:
        cache = f"anon 1\n{prefix}inactive_file {GIB}\nrss 3"
        container(system / folder, str(4 * GIB), str(3 * GIB), cache)
        assert memory.free_bytes() == 2 * GIB

    def test_of_a_container_that_is_full(self, system: Path) -> None:
        container(system / "cgroup", str(4 * GIB), str(5 * GIB), "inactive_file 0")
        assert memory.free_bytes() == 0

    @pytest.mark.parametrize("limit", ["max", "9223372036854771712", ""])
    def test_of_a_container_without_limit(self, system: Path, limit: str) -> None:
        container(system / "cgroup", limit, str(3 * GIB), "inactive_file 0")
        assert memory.free_bytes() == 8 * GIB

    @pytest.mark.parametrize("content", [None, "", "MemAvailable:", "MemAvailable: x kB"])
    def test_where_nothing_tells(self, system: Path, content: str | None) -> None:
        (system / "meminfo").unlink()
        if content is not None:
            (system / "meminfo").write_text(content)
        assert memory.free_bytes() == math.inf

    def test_nothing_is_lowered_where_nothing_tells(self, tiny_spec: ModelSpec) -> None:
        assert memory.jobs_that_fit({"a": 10**12}, tiny_spec, None, math.inf) == 1


def test_declared_length(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros((3000, 2)), 8000)
    soundfile.write(tmp_path / "b.wav", np.zeros((8001, 2)), 16_000)
    (tmp_path / "c.wav").write_text("no audio")
    song = SongFiles("song", "", {name: (tmp_path / f"{name}.wav", 0) for name in "abc"})
    assert memory.declared_samples(song, ["a"], 8000) == 3000
    assert memory.declared_samples(song, ["a", "b", "c"], 8000) == 4001
    assert memory.declared_samples(song, ["c"], 8000) == 0
