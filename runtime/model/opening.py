"""From what a user types as MODEL to an open model: a bundle, an exported file, or a name.

An exported file carries its spec inside (ONNX metadata_props, extra files of torch's archives), so a single
file handed to someone else still separates. They are read here without onnx or torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tfswa.runtime.documents import parse_json
from tfswa.runtime.errors import BackendUnavailable, BundleError, UsageError, did_you_mean
from tfswa.runtime.machine import user_cache
from tfswa.runtime.model import archive, onnx_file, trust
from tfswa.runtime.model.bundle import MANIFEST, PUBLISHED, Bundle
from tfswa.runtime.model.digest import check_digest
from tfswa.runtime.model.spec import ModelSpec

METADATA = "tfx"  # key of metadata_props in ONNX; name of the extra file in TorchScript is tfx.json
DEMO = "demo"
AOT_MEMBERS = (
    "data/aotinductor/",
    "extra/",
    "version",
    "byteorder",
    "archive_format",
    "archive_version",
    ".data/",
)

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
        """Path of an artifact, checked against its hash, that a library may be given.

        Raises:
            BundleError: it is damaged, or declares what it may not.
            UntrustedError: it is machine code that nobody vouches for, see ``trust.py``.
        """


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
        path, entry = self.bundle.file(name), self.bundle.files[name]
        return _check_loadable(entry.kind, path, entry.sha256, self.bundle)


@dataclass(frozen=True)
class FileModel:
    """An exported file as a ``Model``."""

    name: str
    path: Path
    kind: str
    precision: str
    spec: ModelSpec
    sha256: str
    bundle: None = None

    def artifact(self, kind: str, precision: str) -> tuple[str, str]:
        """See ``Model``."""
        if (kind, precision) != (self.kind, self.precision):
            raise BackendUnavailable(
                f"{self.name} is {self.kind} in {self.precision}, asked for is {kind} in {precision}: "
                "choose another --backend or --precision"
            )
        return self.path.name, self.sha256

    def file(self, name: str) -> Path:
        """See ``Model``."""
        return _check_loadable(self.kind, self.path, self.sha256)


def model_names() -> dict[str, Path]:
    """Models that have a name, and where their bundles lie: the embedded one, and what was given a name."""
    embedded = {DEMO: Path(__file__).parents[1] / "demo.tfx"}
    given = sorted(path.parent for path in named_model("*").parent.glob(f"*.tfx/{MANIFEST}"))
    return {**embedded, **{path.stem: path for path in given if path.stem not in embedded}}


def named_model(name: str) -> Path:
    """Where a bundle lies, or is to be put, so that ``name`` means it."""
    return user_cache() / "models" / f"{name}.tfx"


def open_model(name: str | Path, *, trusted: bool = False) -> BundleModel | FileModel:
    """Open a bundle's path, an exported file's path, or a named model.

    Args:
        name: of any of these.
        trusted: run machine code in it, and from now on, though this machine did not make it.

    Raises:
        UsageError: nothing of that name.
        BundleError: it is there and damaged, or not made by tfx.
    """
    opened = _open(name)
    if trusted:
        trust_code(opened)
    return opened


def code_of(model: Model) -> list[tuple[str, str, str]]:
    """Files of a model that are machine code: kind, name and SHA-256."""
    if isinstance(model, FileModel):
        files = [(model.kind, model.path.name, model.sha256)]
    else:
        assert model.bundle is not None
        files = [(entry.kind, name, entry.sha256) for name, entry in sorted(model.bundle.files.items())]
    return [file for file in files if file[0] in trust.CODE]


def trust_code(model: Model) -> None:
    """Note that the user trusts the machine code of a model, as it is now, from now on."""
    for _, _, sha256 in code_of(model):
        trust.trust(sha256)


def _open(name: str | Path) -> BundleModel | FileModel:
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


def embed(spec: ModelSpec, precision: str, source: str, *, sealed: bool = False) -> str:
    """Text that an exported file carries: spec, precision, and the digest of the bundle it came from.

    With ``sealed`` it also says that the file ends in a digest of itself, see ``digest.py``.
    """
    carried = {"spec": spec.to_dict(), "precision": precision, "source": source}
    return json.dumps({**carried, "sealed": True} if sealed else carried, sort_keys=True)


def _open_file(path: Path) -> FileModel:
    kind = _KINDS.get(path.suffix)
    if kind is None:
        raise BundleError(f"{path} ends in {path.suffix!r}: a model is a bundle, a .onnx, .ts or .pt2 file")
    read = onnx_file.read_metadata if kind == "onnx" else archive.read_extra
    text = read(path, METADATA if kind == "onnx" else f"{METADATA}.json")
    if text is None:
        raise BundleError(f"{path} carries no tfx spec: export it with `tfx export`")
    try:
        carried = parse_json(text)
        unknown = carried.keys() - {"spec", "precision", "source", "sealed"}
        if unknown or not isinstance(carried["precision"], str) or carried.get("sealed") not in (None, True):
            raise ValueError("it has keys or values that tfx does not write")
        spec = ModelSpec.from_dict(carried["spec"])
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{path}: its tfx spec is damaged ({error})") from error
    sha256 = check_digest(path, sealed="sealed" in carried)
    return FileModel(str(path), path, kind, carried["precision"], spec, sha256)


def _check_loadable(kind: str, path: Path, sha256: str, bundle: Bundle | None = None) -> Path:
    """A path that a library may be given, once it was looked at."""
    trust.check_trusted(kind, str(path), sha256, bundle)
    if kind in ("onnx", PUBLISHED):
        onnx_file.check_whole(path)
    if kind in ("torchscript", "aotinductor"):
        archive.check_archive(path, *(AOT_MEMBERS if kind == "aotinductor" else ()))
    return path
