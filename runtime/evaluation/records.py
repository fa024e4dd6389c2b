"""The record of each finished song, and when one that lies on disk may be used again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tfswa.runtime.backends import BackendOptions
from tfswa.runtime.documents import parse_json, read_document
from tfswa.runtime.errors import OutputExists
from tfswa.runtime.evaluation.bsseval import Method
from tfswa.runtime.evaluation.scores import WINDOWS, Score
from tfswa.runtime.files.hashes import sha256_of, sha256_of_json
from tfswa.runtime.model.spec import ModelSpec
from tfswa.runtime.songs.finding import SongFiles
from tfswa.runtime.stream.combination import Combination
from tfswa.runtime.stream.separating import Separating

SCHEMA = 2

Identity = Mapping[str, Any]


@dataclass(frozen=True)
class SongResult:
    """A finished song.

    Attributes:
        song: its name.
        split: where it came from.
        seconds: its length.
        audio_sha256: of its files, see ``audio_sha256``.
        scores: figures of each stem and estimator.
        reused: an earlier run computed it.
        notes: what the reader found in its files, damage among it.
    """

    song: str
    split: str
    seconds: float
    audio_sha256: str
    scores: Sequence[Score]
    reused: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Records:
    """Where songs' records and estimates go, and what decides the numbers in them.

    Attributes:
        output: records are ``<output>/songs/<song>.json``.
        identity: all that decides a song's numbers, the song apart.
        stems: the model's.
        estimates: folder for ``<split>/<song>/<stem>.wav``, which museval and musdb read; None for none.
        force: a record of another identity counts as none, and estimates are replaced.
    """

    output: Path
    identity: Identity
    stems: Sequence[str]
    estimates: Path | None
    force: bool

    def path(self, song: SongFiles) -> Path:
        """Where a song's record lies."""
        return self.output / "songs" / f"{song.name}.json"

    def estimate_paths(self, song: SongFiles) -> dict[str, Path]:
        """Where a song's estimates lie, by stem; empty if they are not wanted."""
        if self.estimates is None:
            return {}
        return {stem: self.estimates / song.split / song.name / f"{stem}.wav" for stem in self.stems}

    def find(self, song: SongFiles, sources: Sequence[str]) -> SongResult | None:
        """What an earlier run computed of a song; None where it is to be computed.

        Args:
            song: where its files lie.
            sources: that are read of it.

        Raises:
            OutputExists: something is in the way, and ``force`` is false.
            OSError: a file of the song cannot be read.
        """
        result, paths = self._read(song, sources), self.estimate_paths(song).values()
        there = [path for path in paths if path.exists()]
        if result is None and there and not self.force:
            raise OutputExists(
                f"{there[0]} is there already, and no record of {song.name} in {self.output}: "
                "add --force to replace it, or choose another --estimates"
            )
        return result if len(there) == len(paths) else None

    def text(self, result: SongResult) -> str:
        """A song's record."""
        whole = {
            "schema": SCHEMA,
            "song": result.song,
            "split": result.split,
            "seconds": result.seconds,
            "identity": {**self.identity, "audio_sha256": result.audio_sha256},
            "scores": [score.to_dict() for score in result.scores],
            "notes": list(result.notes),
        }
        whole["sha256"] = sha256_of_json(whole)  # of all else: a record that was changed is not believed
        return json.dumps(whole, indent=1, allow_nan=False) + "\n"

    def _read(self, song: SongFiles, names: Sequence[str]) -> SongResult | None:
        path = self.path(song)
        if not path.exists():
            return None
        audio = audio_sha256(song, names)
        try:
            data = parse_json(read_document(path))
            if data.pop("sha256") != sha256_of_json(data):
                raise ValueError("its own digest does not match")
            different = differences(data["identity"], {**self.identity, "audio_sha256": audio})
            scores = [Score.from_dict(score) for score in data["scores"]]
            notes = tuple(map(str, data.get("notes", ())))
            result = SongResult(song.name, song.split, float(data["seconds"]), audio, scores, True, notes)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            different = [f"it is damaged ({type(error).__name__}: {error})"]
        if different and not self.force:
            raise another(path, different)
        return None if different else result


def identify(
    separator: Separating, spec: ModelSpec, options: BackendOptions, *, baselines: bool, method: Method
) -> dict[str, Any]:
    """All that decides a song's numbers, the song apart; of several models, of each in order.

    Args:
        separator: what separates.
        spec: the contract by which songs are read and measured.
        options: what the models were opened with.
        baselines: whether those are measured.
        method: of BSSEval.
    """
    sessions = [part.session for part in separator.parts]
    measuring = ("museval",) if method == "museval" else ("numpy", "scipy")
    libraries = ("tfswa", *measuring, "av", "soundfile", "soxr")
    return {
        "artifact": ", ".join(session.artifact[0] for session in sessions),
        "artifact_sha256": ", ".join(session.artifact[1] for session in sessions),
        "source": _source(separator),
        "stems": list(spec.stems),
        "backend": ", ".join(dict.fromkeys(session.name for session in sessions)),
        "precision": options.precision or "fp32",
        "device": options.device,
        "wiener": separator.parts[0].codec.wiener,
        "overlap": separator.parts[0].overlap,
        "baselines": baselines,
        "bsseval": method,
        "windows_seconds": list(WINDOWS.values()),
        "versions": dict(
            item
            for found in (_versions(*libraries), *(s.versions for s in sessions))
            for item in found.items()
        ),
    }


def _source(separator: Separating) -> str | None:
    """The bundle's digest; of several, a hash of their digests, the rule and the weights."""
    bundles = [part.model.bundle for part in separator.parts]
    digests = [None if bundle is None else bundle.digest for bundle in bundles]
    if not isinstance(separator, Combination):
        (digest,) = digests
        return digest
    rule = separator.rule
    shares = {
        stem: [[share.member, share.stem, share.weight] for share in of]
        for stem, of in separator.shares.items()
    }
    return sha256_of_json({"members": digests, "combine": rule.how, "shares": shares})


def _versions(*names: str) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def audio_sha256(song: SongFiles, names: Sequence[str]) -> str:
    """Hash of a song's files, with the sources and streams that are read from them."""
    hashes = {path: sha256_of(path) for path in {song.sources[name][0] for name in names}}
    parts = [f"{name} {song.sources[name][1]} {hashes[song.sources[name][0]]}" for name in sorted(names)]
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape")).hexdigest()


def differences(then: Identity, now: Identity, prefix: str = "") -> list[str]:
    """What differs, in words: ``precision fp32, now fp16``."""
    found = []
    for key in dict.fromkeys((*then, *now)):
        old, new = then.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, f"{prefix}{key} of ")
        elif old != new:
            found.append(f"{prefix}{key} {_short(old)}, now {_short(new)}")
    return found


def _short(value: object) -> str:
    text = str(value)
    is_hash = len(text) == 64 and set(text) <= set("0123456789abcdef")
    return f"{text[:12]}..." if is_hash else text


def another(path: Path, different: Sequence[str]) -> OutputExists:
    """The error for a file whose numbers came about otherwise."""
    return OutputExists(
        f"{path} is of another evaluation: {'; '.join(different)}: "
        "add --force to compute it anew, or choose another -o"
    )
