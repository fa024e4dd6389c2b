"""The calibration corpus: chunks that INT8 ranges are taken from, and others that their loss is measured on.

It is one file, made by ``calibration/gather.py``::

    calibration.npz
      corpus.json              contract, seed, strata, songs, what each chunk is
      calibration/0000.npy     float16 [C, N], one member a chunk
      held_out/0000.npy        float32 [C, N]
      held_out/0000/STEM.npy   float32 [C, N], where the true stems are known
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.documents import parse_json
from tfswa.runtime.errors import BundleError, UsageError
from tfswa.runtime.files.hashes import sha256_of
from tfswa.runtime.model.archive import check_members
from tfswa.runtime.model.spec import ModelSpec

Audio = NDArray[np.float32]

SILENT, DIFFICULT = "silent", "difficult"
STRATA = ("vocal", "no vocal", "music", "loud", "quiet", "sparse", "clipped", SILENT, DIFFICULT)

_INDEX = "corpus.json"
_FORMAT, _VERSION = "tfx-calibration", 1
_EPOCH = (1980, 1, 1, 0, 0, 0)  # of every member, so that equal content is equal bytes
_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError),
    *(KeyError, TypeError, ValueError, AttributeError),
)


@dataclass(frozen=True)
class Chunk:
    """What a network takes at once.

    Attributes:
        name: ``song @ 12.3 s``, or the difficult signal's.
        stratum: one of ``STRATA``.
        mixture: float32 ``[C, N]``, N = ``spec.chunk_samples``; in calibration chunks rounded to float16.
        stems: truth by the model's stem names, each float32 ``[C, N]``; empty where it is unknown.
    """

    name: str
    stratum: str
    mixture: Audio
    stems: dict[str, Audio]


class Corpus:
    """An opened ``calibration.npz``; one chunk is in memory at a time. Get one from ``open_corpus``.

    Attributes:
        path: the file.
        sha256: of the file; equal songs, contract, counts and seed give an equal one.
        seed: what the chunks were drawn by.
        strata: calibration chunks by stratum, those that there are.
        held_out_strata: the same of the held-out chunks.
        found: the same of all chunks that the songs hold.
        sources: names of the songs that gave chunks, without folders.
    """

    def __init__(self, path: Path, sha256: str, index: Mapping[str, Any], spec: ModelSpec) -> None:
        self.path, self.sha256 = path, sha256
        self._shape = (spec.channels, spec.chunk_samples)
        self._stems, self._index = spec.stems, index
        self.seed = int(index["seed"])
        self.strata = _counts(entry["stratum"] for entry in index["calibration"])
        self.held_out_strata = _counts(entry["stratum"] for entry in index["held_out"])
        self.found = {str(stratum): int(count) for stratum, count in index["found"].items()}
        self.sources = tuple(str(song["name"]) for song in index["songs"])

    def __len__(self) -> int:
        """Number of calibration chunks."""
        return len(self._index["calibration"])

    @property
    def held_out_count(self) -> int:
        """Number of held-out chunks."""
        return len(self._index["held_out"])

    def calibration(self) -> Iterator[Chunk]:
        """Read the chunks to take ranges from; BundleError if the file was damaged since it was opened."""
        return self._read("calibration")

    def held_out(self) -> Iterator[Chunk]:
        """Read the chunks to measure on, of songs, or of a single song's regions, that calibrate nothing."""
        return self._read("held_out")

    def _read(self, part: str) -> Iterator[Chunk]:
        try:
            with zipfile.ZipFile(self.path) as archive:
                for number, entry in enumerate(self._index[part]):
                    names = self._stems if entry["stems"] and part == "held_out" else ()
                    mixture = self._array(archive, _member(part, number))
                    stems = {name: self._array(archive, _member(part, number, name)) for name in names}
                    yield Chunk(entry["name"], entry["stratum"], mixture, stems)
        except _DAMAGE as error:
            raise _damaged(self.path, error) from error

    def _array(self, archive: zipfile.ZipFile, name: str) -> Audio:
        with archive.open(name) as member:
            version = np.lib.format.read_magic(member)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, _, kind = read[version](member)
            member.seek(0)
            if shape == self._shape and kind in (np.float16, np.float32):  # before it is allocated
                array = np.lib.format.read_array(member, allow_pickle=False)
                if np.isfinite(array).all():
                    return array.astype(np.float32)
        raise ValueError(f"{name} is not finite audio of the shape {list(self._shape)}")


def open_corpus(path: Path, spec: ModelSpec) -> Corpus:
    """Open a corpus and check all of it.

    Raises:
        BundleError: no such file, not a corpus, or a damaged one.
        UsageError: it was gathered for another contract: rate, channels, chunk or stems differ.
    """
    if not path.is_file():
        raise BundleError(f"{path} is not there: gather it, or name another file")
    try:
        with zipfile.ZipFile(path) as archive:
            check_members(path, archive)  # before any of it is unpacked
            if broken := archive.testzip():
                raise ValueError(f"the checksum of {broken} does not match")
            index = parse_json(archive.read(_INDEX))
            if (index["format"], index["version"]) != (_FORMAT, _VERSION):
                raise ValueError(f"{index['format']} {index['version']} is not {_FORMAT} {_VERSION}")
            theirs = {key: index[key] for key in _contract(spec)}
        corpus = Corpus(path, sha256_of(path), index, spec)
    except _DAMAGE as error:
        raise _damaged(path, error) from error
    for key, ours in _contract(spec).items():
        if theirs[key] != ours:
            raise UsageError(
                f"{path} was gathered for {key} {theirs[key]}, the model has {ours}: "
                "gather another for this model"
            )
    return corpus


class Writer:
    """Writes a corpus to an open archive: the index first, then chunks in whatever order.

    Args:
        archive: opened for writing.
        spec: whose contract the chunks have.
        seed: of the draw.
        found: chunks that the songs hold, by stratum.
        songs: what to keep of the songs that gave chunks: ``name``, ``files``, ``seconds``, ``sha256``.
        parts: ``calibration`` and ``held_out``: of each chunk ``name``, ``stratum``, and whether its
            ``stems`` are known.
    """

    def __init__(
        self,
        archive: zipfile.ZipFile,
        spec: ModelSpec,
        *,
        seed: int,
        found: Iterable[str],
        songs: Sequence[Mapping[str, Any]],
        parts: Mapping[str, Sequence[Mapping[str, Any]]],
    ) -> None:
        self._archive = archive
        index = {
            **{"format": _FORMAT, "version": _VERSION, "seed": seed, **_contract(spec)},
            "stft": spec.to_dict()["stft"],
            "found": _counts(found),
            "songs": songs,
            **parts,
        }
        self._add(_INDEX, json.dumps(index, indent=1, sort_keys=True).encode() + b"\n")

    def calibration(self, number: int, mixture: Audio) -> None:
        """A chunk to take ranges from; half of the bits are enough for that."""
        self._add(_member("calibration", number), mixture.astype(np.float16))

    def held_out(self, number: int, mixture: Audio, stems: Mapping[str, Audio]) -> None:
        """A chunk to measure on, and its true stems, none where they are unknown."""
        self._add(_member("held_out", number), mixture)
        for stem, audio in stems.items():
            self._add(_member("held_out", number, stem), audio)

    def _add(self, name: str, content: bytes | NDArray[Any]) -> None:
        info = zipfile.ZipInfo(name, _EPOCH)
        info.create_system, info.external_attr = 3, 0o644 << 16  # Unix, whatever this is
        with self._archive.open(info, "w") as member:
            if isinstance(content, bytes):
                member.write(content)
            else:
                np.lib.format.write_array(member, content, allow_pickle=False)


def _contract(spec: ModelSpec) -> dict[str, Any]:
    return {
        "sample_rate": spec.stft.sample_rate,
        "channels": spec.channels,
        "chunk_samples": spec.chunk_samples,
        "stems": sorted(spec.stems),
    }


def _counts(strata: Iterable[str]) -> dict[str, int]:
    count = Counter(strata)
    return {stratum: count[stratum] for stratum in STRATA if count[stratum]}


def _member(part: str, number: int, stem: str = "") -> str:
    return f"{part}/{number:04}/{stem}.npy" if stem else f"{part}/{number:04}.npy"


def _damaged(path: Path, error: BaseException) -> BundleError:
    said = " ".join(str(error).split()) or type(error).__name__
    return BundleError(f"{path} is damaged, or no calibration corpus ({said}): gather it again")
