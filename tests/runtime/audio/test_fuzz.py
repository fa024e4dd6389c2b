"""The reader on damaged files of 21 kinds: no traceback, no hang, bounded memory, nothing lost in silence.

``TFX_LONG=1`` reads 5,000 of them, otherwise 168 are read.
"""

import multiprocessing
import os
from pathlib import Path

import av
import pytest
from mutants import CHANGES, KINDS, Verdict, judge, original, serve

LONG = bool(os.environ.get("TFX_LONG"))
COUNT = 5000 if LONG else len(KINDS) * len(CHANGES)
MOST_SECONDS = 20  # a file
MOST_MEMORY_MB = 1000


@pytest.mark.parametrize("kind", KINDS)
def test_whole_files_are_read_whole_and_need_no_word(kind: str, tmp_path: Path) -> None:
    data = original(kind)
    (tmp_path / "a").write_bytes(data)
    verdict = judge(tmp_path / "a", kind, kind, "none", len(data))
    assert (verdict.notes, verdict.fault) == ((), "")
    assert verdict.samples is not None
    assert verdict.samples >= 15_435


def test_mutants(tmp_path: Path) -> None:
    """Another process reads them, so that one that hangs is named instead of holding up the tests."""
    context = multiprocessing.get_context("spawn")
    pipe, other = context.Pipe()
    worker = context.Process(target=serve, args=(other, tmp_path), daemon=True)
    worker.start()
    verdicts: list[Verdict] = []
    memory_mb = 0
    try:
        for seed in range(COUNT):
            pipe.send(seed)
            # The first answer waits for the worker's imports and the making of the originals.
            assert pipe.poll(MOST_SECONDS if verdicts else 120), f"seed {seed} takes over {MOST_SECONDS} s"
            verdict, memory_mb = pipe.recv()
            verdicts.append(verdict)
        pipe.send(None)
        worker.join(MOST_SECONDS)
    finally:
        worker.kill()
        pipe.close()
        other.close()
    read = sum(verdict.samples is not None for verdict in verdicts)
    noted = sum(verdict.samples is not None and bool(verdict.notes) for verdict in verdicts)
    print(f"{COUNT} mutants: {read} read, {noted} of them with notes, {memory_mb} MB")
    assert [f"{verdict.name}: {verdict.fault}" for verdict in verdicts if verdict.fault] == []
    assert memory_mb < MOST_MEMORY_MB
    assert noted > COUNT // 5  # or the mutants would prove nothing
    assert read > COUNT // 2


def test_a_file_that_is_lost_in_silence_is_seen(tmp_path: Path) -> None:
    """The judge itself: half a WAV whose header says so is whole to FFmpeg, and to us."""
    data = bytearray(original("wav"))
    (tmp_path / "half").write_bytes(data[: len(data) // 2])
    assert judge(tmp_path / "half", "half", "wav", "cut", len(data)).fault == ""
    at = data.index(b"data")
    size = len(data) // 2 - at - 8
    data[at + 4 : at + 8] = size.to_bytes(4, "little")
    (tmp_path / "half").write_bytes(data[: len(data) // 2])
    assert "not called damaged" in judge(tmp_path / "half", "half", "wav", "cut", len(data)).fault


@pytest.fixture(autouse=True)
def quiet() -> None:
    av.logging.set_level(av.logging.PANIC)
