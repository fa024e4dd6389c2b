"""From what a user types as MODEL to an open model: a bundle, an exported file, or a name.

An exported file carries its spec inside (ONNX metadata_props, extra files of torch's archives), so a single
file handed to someone else still separates. They are read here without onnx or torch.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from tfswa.runtime.errors import BackendUnavailable, BundleError, UsageError, did_you_mean
from tfswa.runtime.machine import user_cache
from tfswa.runtime.model.bundle import MANIFEST, Bundle, sha256_of
from tfswa.runtime.model.spec import ModelSpec

METADATA = "tfx"  # key of metadata_props in ONNX; name of the extra file in TorchScript is tfx.json
INPUT, OUTPUT = "mixture", "stems"  # of every exported graph
DEMO = "demo"

_KINDS = {".onnx": "onnx", ".ts": "torchscript", ".pt2": "aotinductor"}
_MAKE = {
    "onnx": {
        "fp32": "tfx export {name} --format onnx",
        "fp16": "tfx export {name} --format onnx --precision fp16",
        "bf16": "tfx export {name} --format onnx --precision bf16",
        "int8": "tfx calibrate {name} --audio FOLDER",
        "mixed": "tfx export {name} --format onnx --precision mixed",
    },
    "torchscript": {"fp32": "tfx export {name} --format torchscript"},
    "aotinductor": {"fp32": "tfx export {name} --format aotinductor"},
}


class Model(Protocol):
    """An open model."""

    @property
    def name(self) -> str:
        """What the user typed."""

    @property
    def spec(self) -> ModelSpec:
        """Its contract."""

    @property
    def bundle(self) -> Bundle | None:
        """The bundle it is, or None for an exported file."""

    def artifact(self, kind: str, precision: str) -> tuple[str, str]:
        """File name and SHA-256 of the artifact of that kind and precision.

        Raises:
            BackendUnavailable: the model has none; the message says how to make it.
        """

    def file(self, name: str) -> Path:
        """Path of an artifact, checked against its hash."""


@dataclass(frozen=True)
class BundleModel:
    """A bundle as a ``Model``."""

    name: str
    bundle: Bundle

    @property
    def spec(self) -> ModelSpec:
        """The bundle's."""
        return self.bundle.spec

    def artifact(self, kind: str, precision: str) -> tuple[str, str]:
        """See ``Model``."""
        found = self.bundle.find(kind, precision)
        if found is None:
            how = _MAKE.get(kind, {}).get(precision, "").format(name=self.name)
            raise BackendUnavailable(
                f"{self.name} holds no {kind} artifact in {precision}"
                + (f": make it with `{how}`" if how else "")
            )
        return found, self.bundle.files[found].sha256

    def file(self, name: str) -> Path:
        """See ``Model``."""
        return self.bundle.file(name)


@dataclass(frozen=True)
class FileModel:
    """An exported file as a ``Model``."""

    name: str
    path: Path
    kind: str
    precision: str
    spec: ModelSpec
    bundle: None = None

    def artifact(self, kind: str, precision: str) -> tuple[str, str]:
        """See ``Model``."""
        if (kind, precision) != (self.kind, self.precision):
            raise BackendUnavailable(
                f"{self.name} is {self.kind} in {self.precision}, asked for is {kind} in {precision}: "
                "choose another --backend or --precision"
            )
        return self.path.name, sha256_of(self.path)

    def file(self, name: str) -> Path:
        """See ``Model``."""
        return self.path


def model_names() -> dict[str, Path]:
    """Models that have a name, and where their bundles lie: the embedded one, and what was given a name."""
    embedded = {DEMO: Path(__file__).parents[1] / "demo.tfx"}
    given = sorted(path.parent for path in named_model("*").parent.glob(f"*.tfx/{MANIFEST}"))
    return {**embedded, **{path.stem: path for path in given if path.stem not in embedded}}


def named_model(name: str) -> Path:
    """Where a bundle lies, or is to be put, so that ``name`` means it."""
    return user_cache() / "models" / f"{name}.tfx"


def open_model(name: str | Path) -> BundleModel | FileModel:
    """Open a bundle's path, an exported file's path, or a named model.

    Raises:
        UsageError: nothing of that name.
        BundleError: it is there and damaged, or not made by tfx.
    """
    path, known = Path(name), model_names()
    if str(name) in known and not path.exists():
        return BundleModel(str(name), Bundle.open(known[str(name)]))
    if path.is_dir():
        if not (path / MANIFEST).is_file():
            raise BundleError(f"{path} is a folder without {MANIFEST}, not a bundle")
        return BundleModel(str(name), Bundle.open(path))
    if path.is_file():
        return _open_file(path)
    close = did_you_mean(str(name), known)
    raise UsageError(
        f"no model {str(name)!r}{close or ':'} it is neither a path nor one of {', '.join(known)}"
    )


def embed(spec: ModelSpec, precision: str, source: str) -> str:
    """Text that an exported file carries: spec, precision, and the digest of the bundle it came from."""
    return json.dumps({"spec": spec.to_dict(), "precision": precision, "source": source}, sort_keys=True)


def _open_file(path: Path) -> FileModel:
    kind = _KINDS.get(path.suffix)
    if kind is None:
        raise BundleError(f"{path} ends in {path.suffix!r}: a model is a bundle, a .onnx, .ts or .pt2 file")
    text = _onnx_metadata(path) if kind == "onnx" else _archive_metadata(path)
    if text is None:
        raise BundleError(f"{path} carries no tfx spec: export it with `tfx export`")
    try:
        carried = json.loads(text)
        spec, precision = ModelSpec.from_dict(carried["spec"]), str(carried["precision"])
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path}: its tfx spec is damaged ({error})") from error
    return FileModel(str(path), path, kind, precision, spec)


def _archive_metadata(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith(f"/extra/{METADATA}.json"):
                    return archive.read(name).decode()
    except Exception as error:  # zipfile lets the errors of zlib, lzma, struct and others through
        raise BundleError(f"{path} is not a file of torch, or damaged: {error}") from error
    return None


def _onnx_metadata(path: Path) -> str | None:
    """Read metadata_props (field 14 of ModelProto) without loading the graph."""
    try:
        with path.open("rb") as stream:
            for number, value in _fields(stream, path.stat().st_size, wanted=14):
                if number == 14:
                    pair = dict(_pairs(value))
                    if pair.get(1) == METADATA.encode():
                        return pair[2].decode()
    except (OSError, ValueError, KeyError) as error:
        raise BundleError(f"{path} is not an ONNX file, or damaged: {error}") from error
    return None


def _fields(stream: BinaryIO, size: int, wanted: int) -> Iterator[tuple[int, bytes]]:
    """Top-level protobuf fields; content only of the wanted one, the rest is skipped."""
    while stream.tell() < size:
        key = _varint(stream)
        number, wire = key >> 3, key & 7
        if wire == 0:
            _varint(stream)
            continue
        length = {1: 8, 5: 4}.get(wire) or (_varint(stream) if wire == 2 else -1)
        if length < 0 or stream.tell() + length > size:
            raise ValueError(f"field {number} of wire type {wire} runs past the end")
        if number == wanted:
            yield number, stream.read(length)
        else:
            stream.seek(length, 1)


def _pairs(message: bytes) -> Iterator[tuple[int, bytes]]:
    import io

    stream = io.BytesIO(message)
    for wanted in (1, 2):
        stream.seek(0)
        yield from _fields(stream, len(message), wanted)


def _varint(stream: BinaryIO) -> int:
    value = shift = 0
    while True:
        byte = stream.read(1)
        if not byte or shift > 63:
            raise ValueError("a number runs past the end")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
        shift += 7
