"""What the fuzz of the reader found, as a table of the terminal and as a page of the docs."""

import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

from mutants import Verdict

TITLES = {
    "kind": "kind of file",
    "mutants": "mutants",
    "clean": "read, nothing to note",
    "noted": "read, with notes",
    "damaged": "of these damaged",
    "refused": "refused, one line",
    "refused_alone": "of these FFmpeg reads a part",
    "faults": "faults",
    "longest_s": "longest, s",
    "memory_mb": "peak memory, MB",
}


@dataclass(frozen=True)
class Row:
    """The mutants of one kind of file; the titles of its fields are in ``TITLES``."""

    kind: str
    mutants: int
    clean: int
    noted: int
    damaged: int
    refused: int
    refused_alone: int
    faults: int
    longest_s: float
    memory_mb: float


def row(kind: str, verdicts: list[Verdict], memory_mb: float) -> Row:
    """Count the verdicts of a kind."""
    read = [verdict for verdict in verdicts if verdict.samples is not None]
    refused = [verdict for verdict in verdicts if verdict.samples is None]
    return Row(
        kind,
        len(verdicts),
        sum(not verdict.notes for verdict in read),
        sum(bool(verdict.notes) for verdict in read),
        sum(any("!" in note[:1] for note in verdict.notes) for verdict in read),
        len(refused),
        sum(verdict.expected is not None for verdict in refused),
        sum(bool(verdict.fault) for verdict in verdicts),
        round(max(verdict.seconds for verdict in verdicts), 2),
        memory_mb,
    )


def total(rows: list[Row]) -> Row:
    """All rows as one."""
    counts = [sum(getattr(row, name) for row in rows) for name in list(TITLES)[1:-2]]
    return Row("all", *counts, max(row.longest_s for row in rows), max(row.memory_mb for row in rows))


def table(rows: list[Row]) -> str:
    """A Markdown table."""
    shown = [*rows, total(rows)] if len(rows) > 1 else rows
    lines = [tuple(TITLES.values()), ("---",) * len(TITLES)]
    lines += [tuple(f"{value:,}" if not isinstance(value, str) else value for value in asdict(row).values())
              for row in shown]  # fmt: skip
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def write_page(page: Path, rows: list[Row]) -> None:
    """Write the page and, beside it, its numbers."""
    page.with_suffix(".json").write_text(
        json.dumps({"python": platform.python_version(), "rows": [asdict(row) for row in rows]}, indent=1)
        + "\n"
    )
    page.write_text(PAGE.format(count=f"{total(rows).mutants:,}", table=table(rows)))


PAGE = """\
# Damaged files: a fuzz of the reader
{count} damaged files of 21 kinds, in 16 containers, were read. Each is a file of 0.7 s with one change:
flipped bits, odd numbers in its header, its end or its middle cut off, a run of zeros, bytes of another
file inside it, or another file behind it. FFmpeg decoded the same bytes, and its count of samples was
compared with ours.

{table}
- *Read, nothing to note*: as many samples as FFmpeg's, give or take 1,200 (time stamps, the padding of a last
  frame), and nothing is missing that the file itself declares.
- *Read, with notes*: a difference, a repair or something left out was told; see [audio](../audio.md).
- *Refused*: one line and exit code 1. FFmpeg decodes some of these in part: their samples are no numbers, no
  frame matches its checksum, or more is damaged than is filled with silence.
- *Faults* are tracebacks, errors of more than one line, and a file that is cut, joined or of another length
  than FFmpeg's without a word. A file that takes more than 20 s, or a process of more than 1,000 MB, fails
  the test too.

Each kind ran in a process of its own; its memory holds Python, numpy and FFmpeg. Made in three minutes by
`TFX_LONG=write .venv/bin/python -m pytest -n0 -s tests/runtime/audio/test_fuzz.py`.
Numbers: [fuzz.json](fuzz.json).
"""
