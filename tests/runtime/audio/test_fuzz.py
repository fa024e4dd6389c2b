"""The reader on damaged files of 21 kinds: no traceback, no hang, bounded memory, nothing lost in silence.

``TFX_LONG=1`` reads 5,000 of them, each kind in a process of its own, and prints a table; otherwise 168 are
read. ``TFX_LONG=write`` writes the table to docs/measured/fuzz.md and fuzz.json as well:

    TFX_LONG=write .venv/bin/python -m pytest -n0 -s tests/runtime/audio/test_fuzz.py
"""

import multiprocessing
import os
from pathlib import Path

import av
import pytest
from fuzz_page import Row, row, table, write_page
from mutants import CHANGES, KINDS, Verdict, judge, kind_of, make, original, serve

LONG = os.environ.get("TFX_LONG", "")
COUNT = 5000 if LONG else len(KINDS) * len(CHANGES)
MOST_SECONDS = 20  # a file
MOST_MEMORY_MB = 1000
START_SECONDS = 120  # of the worker: its imports, and the making of the originals
PAGE = Path(__file__).parents[3] / "docs" / "measured" / "fuzz.md"


@pytest.mark.parametrize("kind", KINDS)
def test_whole_files_are_read_whole_and_need_no_word(kind: str, tmp_path: Path) -> None:
    whole = make(tmp_path, kind)
    (tmp_path / "a").write_bytes(whole.data)
    verdict = judge(tmp_path / "a", kind, "none", whole)
    assert (verdict.notes, verdict.fault) == ((), "")
    assert verdict.samples is not None
    assert verdict.samples >= 15_435


def judged(seeds: list[int], folder: Path) -> tuple[list[Verdict], float]:
    """Verdicts of mutants, and the peak of memory in MB.

    Another process reads them, so that one that hangs is named instead of holding up the tests.
    """
    context = multiprocessing.get_context("spawn")
    pipe, other = context.Pipe()
    worker = context.Process(target=serve, args=(other, folder), daemon=True)
    worker.start()
    verdicts: list[Verdict] = []
    memory_mb = 0.0
    try:
        for seed in seeds:
            pipe.send(seed)
            most = MOST_SECONDS if verdicts else START_SECONDS
            assert pipe.poll(most), f"seed {seed} takes over {most} s"
            verdict, memory_mb = pipe.recv()
            verdicts.append(verdict)
        pipe.send(None)
        worker.join(MOST_SECONDS)
    finally:
        worker.kill()
        pipe.close()
        other.close()
    return verdicts, memory_mb


def test_mutants(tmp_path: Path) -> None:
    groups = [(kind,) for kind in KINDS] if LONG else [KINDS]
    verdicts: list[Verdict] = []
    rows: list[Row] = []
    for kinds in groups:
        found, memory_mb = judged([seed for seed in range(COUNT) if kind_of(seed) in kinds], tmp_path)
        verdicts += found
        rows.append(row(", ".join(kinds) if len(kinds) == 1 else "all", found, memory_mb))
    print("\n" + table(rows))
    if LONG == "write":
        write_page(PAGE, rows)
    faults = [f"{verdict.name}: {verdict.fault}" for verdict in verdicts if verdict.fault]
    assert not faults, "\n".join(faults)
    assert max(row.memory_mb for row in rows) < MOST_MEMORY_MB
    assert sum(row.noted for row in rows) > COUNT // 5  # or the mutants would prove nothing
    assert sum(row.refused for row in rows) < COUNT // 2


def test_a_file_that_is_lost_in_silence_is_seen(tmp_path: Path) -> None:
    """The judge itself: half a WAV whose header says so is whole to FFmpeg, and to us."""
    whole = make(tmp_path, "wav")
    data = bytearray(original("wav"))
    (tmp_path / "half").write_bytes(data[: len(data) // 2])
    assert judge(tmp_path / "half", "half", "cut", whole).fault == ""
    at = data.index(b"data")
    size = len(data) // 2 - at - 8
    data[at + 4 : at + 8] = size.to_bytes(4, "little")
    (tmp_path / "half").write_bytes(data[: len(data) // 2])
    assert "not called damaged" in judge(tmp_path / "half", "half", "cut", whole).fault
    assert "and another, without a word" in judge(tmp_path / "half", "half", "join", whole).fault


@pytest.fixture(autouse=True)
def quiet() -> None:
    av.logging.set_level(av.logging.PANIC)
