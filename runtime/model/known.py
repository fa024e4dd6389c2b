"""Models that others have published: what is known of them, in ``known.json``; see ``docs/import.md``.

Nothing here fetches anything. A checkpoint holds weights and little else; what it cannot say (hop, length
of a chunk, names of the stems) is in ``KnownModel.config``, laid out like the YAML files of
ZFTurbo/Music-Source-Separation-Training: sections ``audio``, ``model``, ``training``, ``inference``. What
all models of an architecture share stands once, under ``defaults``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from tfswa.runtime.documents import from_json, parse_json, read_document
from tfswa.runtime.errors import BundleError, UsageError, did_you_mean

DATA = Path(__file__).with_name("known.json")
VERSION = 1
SECTIONS = ("audio", "model", "training", "inference")
START = 8  # digits of a SHA-256, where no more are known

_NAME = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
_WORD = re.compile(r"[a-z0-9]+(?:_[a-z0-9]+)*")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HEX = {"sha256": 64, "sha256_start": START, "md5_tail": 32}


@dataclass(frozen=True)
class KnownFile:
    """One file of a model.

    Attributes:
        name: as its author called it.
        sources: https addresses, the author's first; empty where none is known.
        sha256: of its content, 64 digits; None where it is not known.
        sha256_start: the first 8 digits, where no more are known.
        md5_tail: MD5 of its last 10,240,000 bytes, by which Ultimate Vocal Remover knows models.
        size_bytes: its size; None where it is not known.
        stem: the one that this file is for, of a model in several files.
    """

    name: str
    sources: Sequence[str]
    sha256: str | None = None
    sha256_start: str | None = None
    md5_tail: str | None = None
    size_bytes: int | None = None
    stem: str | None = None

    def is_of(self, sha256: str) -> bool:
        """Whether a content of this SHA-256 is this file, as far as its digits are known."""
        return self.sha256 == sha256 or bool(self.sha256_start and sha256.startswith(self.sha256_start))


@dataclass(frozen=True)
class KnownScore:
    """What was published of its quality.

    Attributes:
        sdr_db: by stem.
        songs: the data set.
        published: address of the page.
    """

    sdr_db: Mapping[str, float]
    songs: str
    published: str


@dataclass(frozen=True)
class KnownModel:
    """A model that can be had.

    Attributes:
        name: what a user types.
        architecture: a word for the importer, such as ``mel_roformer``.
        stems: outputs of the network, in order.
        complement: what is left of the mixture, where the network gives one stem.
        files: in the order of ``stems`` where each is for one.
        license: of the weights, as stated; ``not stated`` where no statement was found.
        listed: where these facts were found.
        config: settings by section, as ``KnownModel`` says above.
        score: None where none that can be looked up was found.
        extras: parts that the plain architecture does not have.
        matched: how ``known_by_digest`` found it: by the whole hash, or by the first 8 digits alone.
    """

    name: str
    architecture: str
    stems: Sequence[str]
    files: Sequence[KnownFile]
    license: str
    listed: str
    config: Mapping[str, Mapping[str, Any]]
    complement: str | None = None
    score: KnownScore | None = None
    extras: Sequence[str] = ()
    matched: Literal["", "whole", "start"] = ""

    @property
    def target(self) -> str | None:
        """The stem of a network that gives one and leaves a complement."""
        return self.stems[0] if self.complement else None

    @property
    def bag(self) -> Mapping[str, tuple[float, ...]] | None:
        """By stem, how much each file counts in it; None where files are not networks of all stems."""
        rows = self.config.get("inference", {}).get("weights")
        if rows is None:
            return None
        return {stem: tuple(float(row[place]) for row in rows) for place, stem in enumerate(self.stems)}

    @property
    def source(self) -> str | None:
        """Address of its first file; None unless each file has one."""
        return self.files[0].sources[0] if all(file.sources for file in self.files) else None

    @property
    def size_mb(self) -> float | None:
        """Of all its files, in 10^6 bytes; None where one of them is not known."""
        sizes = [file.size_bytes for file in self.files]
        return None if None in sizes else sum(size for size in sizes if size) / 1e6

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        found = {key: value for key, value in asdict(self).items() if key != "matched"}
        return {**found, "target": self.target, "source": self.source, "size_mb": self.size_mb}


def known_models() -> tuple[KnownModel, ...]:
    """All models of the list, by architecture and name; new objects each time, the caller's own.

    Raises:
        BundleError: ``known.json`` is damaged.
    """
    try:
        return parse_known(read_document(DATA))
    except (ValueError, OSError) as error:
        raise BundleError(f"{DATA} is damaged ({error}): install tfx again") from error


def known_model(name: str) -> KnownModel:
    """The model of a name.

    Raises:
        UsageError: there is none.
    """
    models = {model.name: model for model in known_models()}
    if name in models:
        return models[name]
    close = did_you_mean(name, models)
    raise UsageError(
        f"no known model {name!r}{close or ':'} `tfx models --known` lists all {len(models)}; "
        "a file of yours is named by its path"
    )


def known_by_digest(sha256: str) -> KnownModel | None:
    """The model that has a file of this SHA-256; ``matched`` says whether all digits were compared."""
    for model in known_models():
        for file in model.files:
            if file.is_of(sha256):
                return replace(model, matched="whole" if file.sha256 else "start")
    return None


def known_by_tail(md5_tail: str) -> KnownModel | None:
    """The model that has a file of this MD5, which is of its last 10,240,000 bytes."""
    return next(
        (model for model in known_models() for file in model.files if file.md5_tail == md5_tail), None
    )


def parse_known(text: str | bytes) -> tuple[KnownModel, ...]:
    """Read the list, and check every entry.

    Raises:
        ValueError: anything that is not as it should be; one line.
    """
    data = parse_json(text)
    if not isinstance(data, dict) or data.keys() != {"version", "defaults", "models"}:
        raise ValueError("it is not an object of version, defaults and models")
    if data["version"] != VERSION:
        raise ValueError(f"its version is {data['version']!r}, this tfx reads {VERSION}")
    models = tuple(_model(entry, data["defaults"]) for entry in data["models"])
    for what, values in (
        ("name", [model.name for model in models]),
        ("SHA-256", [file.sha256 for model in models for file in model.files if file.sha256]),
        ("MD5", [file.md5_tail for model in models for file in model.files if file.md5_tail]),
    ):
        twice = {value for value in values if values.count(value) > 1}
        if twice:
            raise ValueError(f"{what} {sorted(twice)[0]} is there twice")
    return models


def _model(entry: Mapping[str, Any], defaults: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> KnownModel:
    built = {
        **entry,
        "files": [from_json(KnownFile, file) for file in entry["files"]],
        "score": from_json(KnownScore, entry["score"]) if "score" in entry else None,
        "config": _merged(defaults.get(entry["architecture"], {}), entry["config"]),
    }
    model = from_json(KnownModel, built, str(entry.get("name")))
    _check_model(model)
    for file in model.files:
        _check_file(file, model.name)
    return model


def _merged(
    shared: Mapping[str, Mapping[str, Any]], own: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Settings of an architecture, and those of one model before them; sections in their order."""
    unknown = (shared.keys() | own.keys()) - set(SECTIONS)
    if unknown:
        raise ValueError(f"config has a section {sorted(unknown)[0]!r}, none of {', '.join(SECTIONS)}")
    return {
        name: {**deepcopy(shared.get(name, {})), **own.get(name, {})}
        for name in SECTIONS
        if name in shared or name in own
    }


def _check_model(model: KnownModel) -> None:
    training = model.config.get("training", {})
    instruments = [*model.stems, *([model.complement] if model.complement else [])]
    tests = {
        "its name is not small letters, digits and hyphens": _NAME.fullmatch(model.name),
        "its architecture is no word": _WORD.fullmatch(model.architecture),
        "a stem is no word": all(map(_WORD.fullmatch, instruments)),
        "an extra is no word": all(map(_WORD.fullmatch, model.extras)),
        "it has no stems, or one twice": len(set(instruments)) == len(instruments) > 0,
        "a complement is what one stem leaves": not model.complement or len(model.stems) == 1,
        "training.instruments are not its stems": training.get("instruments") == instruments,
        "training.target_instrument is not its target": training.get("target_instrument") == model.target,
        "it has no files": model.files,
        "inference.weights are not one row a file, of one number a stem": _is_bag(model),
        "files for stems do not follow them": {file.stem for file in model.files} == {None}
        or [file.stem for file in model.files] == list(model.stems),
        "license or listed is empty": model.license and model.listed,
        "audio has no sample rate": model.config.get("audio", {}).get("sample_rate", 0) > 0,
        "its score is of no page": model.score is None or _is_https(model.score.published),
    }
    for problem, fine in tests.items():
        if not fine:
            raise ValueError(f"{model.name}: {problem}")


def _is_bag(model: KnownModel) -> bool:
    rows = model.config.get("inference", {}).get("weights", [[0] * len(model.stems)] * len(model.files))
    return len(rows) == len(model.files) and all(
        len(row) == len(model.stems) and all(type(weight) in (int, float) for weight in row) for row in rows
    )


def _check_file(file: KnownFile, model: str) -> None:
    if not _FILE.fullmatch(file.name):
        raise ValueError(f"{model}: {file.name!r} is no plain name of a file")
    for source in file.sources:
        if not _is_https(source):
            raise ValueError(f"{model}: {source} is no https address of a file")
    for key, digits in _HEX.items():
        value = getattr(file, key)
        if value is not None and not re.fullmatch(f"[0-9a-f]{{{digits}}}", value):
            raise ValueError(f"{model}: {key} {value} has not {digits} small hexadecimal digits")
    if file.sha256 and file.sha256_start:
        raise ValueError(f"{model}: {file.name} has a whole SHA-256 and a start of one: keep the whole")
    if file.size_bytes is not None and file.size_bytes < 1:
        raise ValueError(f"{model}: {file.name} has {file.size_bytes} bytes")


def _is_https(address: str) -> bool:
    parts = urlsplit(address)
    return bool(parts.scheme == "https" and parts.hostname and parts.path.strip("/")) and " " not in address
