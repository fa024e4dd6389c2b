"""The MDX-Net graphs that are known, by the hash that UVR knows them by."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from tfswa.runtime.documents import parse_toml, read_document

TABLE = Path(__file__).with_suffix(".toml")
HASHED_BYTES = 10_240_000  # at the end of a file


@dataclass(frozen=True)
class Known:
    """What the table says of a graph.

    Attributes:
        n_fft: of the transform.
        bins: that the network sees.
        frames: of a chunk.
        primary: the stem that the network gives.
        compensate: what it is multiplied by before it is taken from the mixture.
        name: of the file, as it was published; empty where nobody noted it.
    """

    n_fft: int
    bins: int
    frames: int
    primary: str
    compensate: float
    name: str


def known_graphs() -> dict[str, Known]:
    """The table: what is known of a graph, by the MD5 of the end of its file."""
    rows = parse_toml(read_document(TABLE))
    return {digest: Known(*row) for digest, row in rows.items()}


def tail_md5(path: Path) -> str:
    """MD5 of the last ``HASHED_BYTES`` of a file, of all of a shorter one: the name that UVR knows it by."""
    with path.open("rb") as stream:
        stream.seek(max(0, os.fstat(stream.fileno()).st_size - HASHED_BYTES))
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
