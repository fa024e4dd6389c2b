"""The bundle: a directory ``name.tfx/`` that holds a model and everything made from it.

    vocals.tfx/
      manifest.json        spec, provenance, SHA-256 of every other file
      model.safetensors    the weights; or published.onnx, a graph that others published in place of weights
      model.onnx, model.ts, engines/..., parity.json      what later stages added

A bundle may be sealed (the one inside the package is): what is added then goes to the user's cache, under
the digest of the model. No pickle is read. Every write goes to a temporary name and is renamed.
"""

from __future__ import annotations

import functools
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.documents import from_json, parse_json, read_document
from tfswa.runtime.errors import BundleError, OutputExists, UsageError, reason
from tfswa.runtime.files import caches
from tfswa.runtime.files.atomic import folder, new_folder, writing
from tfswa.runtime.files.hashes import sha256_of, sha256_of_json
from tfswa.runtime.files.locks import locked
from tfswa.runtime.files.own_folders import check_own, usable
from tfswa.runtime.files.partial import beside
from tfswa.runtime.files.publish import Move, publish, sweep
from tfswa.runtime.machine import user_cache
from tfswa.runtime.model.limits import METADATA_BYTES
from tfswa.runtime.model.spec import ChunkSpec, ModelSpec

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
WEIGHTS = "model.safetensors"
GRAPH, PUBLISHED = "published.onnx", "published"  # what is there in place of weights, and its kind
ONLY = "only"  # folder of bundles inside, see ``narrowed.py``
MEMBERS = "members"  # in the manifest of an ensemble, in place of a spec
FORMAT = "tfx-bundle"
VERSION = 1


@dataclass(frozen=True)
class FileEntry:
    """One file of a bundle.

    Attributes:
        sha256: of its content.
        bytes: its size.
        kind: ``weights``, ``published`` (the graph that is there in place of weights), ``onnx``,
            ``transform`` (an ONNX graph too, of the transform or its inverse), ``torchscript``,
            ``aotinductor``, ``engine``, ``transform engine``, ``answer`` (what an engine must give in its
            self-test, see ``engines.py``), ``engine key``, ``evidence``, ``signature`` or ``document``.
        precision: ``fp32``, ``fp16``, ... or empty where the word means nothing.
        details: whatever the stage that made it wants to remember, JSON values only.
    """

    sha256: str
    bytes: int
    kind: str
    precision: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


class Bundle:
    """An open bundle. Files are hashed when they are asked for, so opening is quick.

    Attributes:
        path: its directory.
        spec: the model's contract.
        provenance: how the weights came to be, JSON values only.
        sealed: whether additions go to the user's cache.
    """

    def __init__(
        self,
        path: Path,
        spec: ModelSpec,
        provenance: Mapping[str, Any],
        files: Mapping[str, FileEntry],
        *,
        sealed: bool,
    ):
        self.path, self.spec, self.provenance, self.sealed = path, spec, provenance, sealed
        self._own = dict(files)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a bundle and check its manifest, not yet its files.

        Raises:
            BundleError: no bundle, a damaged manifest, or one of another version.
        """
        manifest = read_manifest(path)
        if MEMBERS in manifest:
            raise BundleError(
                f"{path} is an ensemble of models, here is room for one: name a bundle inside, such as "
                f"{next(path.glob('*.tfx'), path)}"
            )
        if "spec" not in manifest:
            raise BundleError(f"{path}: the manifest holds no model spec: make the bundle again")
        files, provenance = _entries(path, manifest), manifest.get("provenance", {})
        spec = ModelSpec.from_dict(manifest["spec"])
        origin, other = (GRAPH, WEIGHTS) if spec.family is None else (WEIGHTS, GRAPH)
        if origin not in files or other in files or not isinstance(provenance, dict):
            raise BundleError(
                f"{path / MANIFEST} lists no {origin}, or {other} too, or its provenance is no object: "
                "make the bundle again"
            )
        return cls(path, spec, provenance, files, sealed=bool(manifest.get("sealed", False)))

    @classmethod
    def create(
        cls,
        path: Path,
        spec: ModelSpec,
        weights: Mapping[str, NDArray[Any]],
        *,
        provenance: Mapping[str, Any] | None = None,
        documents: Mapping[str, str] | None = None,
        precision: str = "fp32",
        force: bool = False,
    ) -> Self:
        """Write a new bundle, whole or not at all.

        Args:
            path: its directory; must not exist unless ``force``.
            spec: contract of the model.
            weights: by name; floating-point arrays are stored in ``precision``.
            provenance: how the weights came to be.
            documents: texts to put beside the weights, by file name.
            precision: ``fp32`` or ``fp16``.
            force: replace what is at ``path``.

        Raises:
            OutputExists: ``path`` is there.
            UsageError: ``path`` cannot be written, or there is no such precision.
            BundleError: a weight is not finite in that precision.
        """
        from safetensors.numpy import save

        def write(target: Path) -> None:
            target.write_bytes(save(_cast(weights, precision)))  # save_file gives mode 600

        return cls._create(path, spec, (write, precision), provenance or {}, documents or {}, force)

    @classmethod
    def create_of_graph(
        cls, path: Path, spec: ModelSpec, graph: Path, *, provenance: Mapping[str, Any], force: bool = False
    ) -> Self:
        """Write a new bundle of a graph that others published, whole or not at all.

        Args:
            path: its directory; must not exist unless ``force``.
            spec: contract of the model, of no family.
            graph: the file, which is kept byte for byte.
            provenance: where it is from.
            force: replace what is at ``path``.

        Raises:
            OutputExists: ``path`` is there.
            UsageError: ``path`` cannot be written.
        """
        assert spec.family is None
        return cls._create(
            path, spec, (functools.partial(shutil.copyfile, graph), "fp32"), provenance, {}, force
        )

    @classmethod
    def _create(
        cls,
        path: Path,
        spec: ModelSpec,
        origin: tuple[Callable[[Path], object], str],
        provenance: Mapping[str, Any],
        documents: Mapping[str, str],
        force: bool,
    ) -> Self:
        """Of what writes the weights or the graph, and their precision."""
        write, precision = origin
        name, kind = (GRAPH, PUBLISHED) if spec.family is None else (WEIGHTS, "weights")
        with replacing_directory(path, force=force) as work:
            write(work / name)
            files = {name: _entry(work / name, kind, precision, {})}
            for document, text in documents.items():
                (work / document).write_text(text, encoding="utf-8")
                files[document] = _entry(work / document, "document", "", {})
            manifest = {"spec": spec.to_dict(), "provenance": dict(provenance), "sealed": False}
            write_manifest(work, manifest, files)
        return cls.open(path)

    def copy_bare(self, path: Path) -> Self:
        """Copy what the model is into a new bundle, byte for byte: spec, weights or graph, and provenance."""
        source = self.file(self.origin)
        origin = (functools.partial(shutil.copyfile, source), self._own[self.origin].precision)
        return self._create(path, self.spec, origin, self.provenance, {}, False)

    @property
    def origin(self) -> str:
        """Name of the file that all others are made from: the weights, or the graph in place of them."""
        return GRAPH if self.spec.family is None else WEIGHTS

    @property
    def digest(self) -> str:
        """Hash of what the model is (spec, and weights or graph); it stays when files are added."""
        return sha256_of_json([self.spec.to_dict(), self._own[self.origin].sha256])

    @property
    def home(self) -> Path:
        """Where additions go: the bundle itself, or for a sealed one the user's cache."""
        if not self.sealed:
            return self.path
        return user_cache() / "bundles" / self.digest[:16]

    @property
    def files(self) -> dict[str, FileEntry]:
        """Every file by name, additions of a sealed bundle included."""
        return {**self._own, **self._added()}

    def drop_damaged(self, *names: str) -> None:
        """Remove what was added to a sealed bundle and is damaged: it lies in a cache and can be made again.

        Args:
            names: of files to look at; all where none is given.
        """
        for name, entry in self._added().items():
            path = self.home / name
            if names and name not in names:
                continue
            with suppress(OSError):
                if sha256_of(path) == entry.sha256:
                    caches.touch(self.home)
                    continue
                logger.warning("%s is damaged: it is left out, make it again", path)
                path.unlink()

    def _added(self) -> dict[str, FileEntry]:
        """What the user's cache adds to a sealed bundle: nothing where its manifest is damaged."""
        home = self.home
        if not self.sealed or not usable(home) or not (home / MANIFEST).exists():
            return {}
        try:
            entries = _entries(home, read_manifest(home))
        except BundleError as error:
            _warn_once(f"{error}; what was added to {self.path} is left out")
            return {}
        places = {name: home / name for name in entries}
        linked = {folder for folder in {place.parent for place in places.values()} if not usable(folder)}
        there = [name for name, at in places.items() if at.parent not in linked and at.is_file()]
        return {name: entries[name] for name in there}

    def file(self, name: str) -> Path:
        """Path of a file whose content has just been checked against the manifest.

        Raises:
            BundleError: not in the manifest, missing, or changed since it was written.
        """
        path, entry, found = self._look(name)
        if found != entry.sha256:
            # Another process may be replacing the file just now, or have been killed while it did.
            with suppress(OSError), self._turn():
                path, entry, found = self._look(name)
        if found is None:
            raise BundleError(f"{path} is missing, though the manifest lists it: make it again")
        if found != entry.sha256:
            raise BundleError(
                f"{path} is damaged: its SHA-256 is {found[:12]}, the manifest says {entry.sha256[:12]}: "
                "restore or make it again"
            )
        return path

    def _look(self, name: str) -> tuple[Path, FileEntry, str | None]:
        """Where a file is, what the manifest says of it, and its hash; None where it is missing."""
        entry = self.files.get(name)
        if entry is None:
            raise BundleError(f"{self.path} holds no {name}; it holds {', '.join(sorted(self.files))}")
        path = (self.home if self.sealed and name not in self._own else self.path) / name
        try:
            return path, entry, sha256_of(path) if path.is_file() else None
        except FileNotFoundError:
            return path, entry, None

    def find(self, kind: str, precision: str | None = None) -> str | None:
        """Name of the first file of that kind and precision, or None."""
        for name, entry in self.files.items():
            if entry.kind == kind and precision in (None, entry.precision):
                self.drop_damaged(name)
                if name in self.files:
                    return name
        return None

    def holds(self, *names: str) -> bool:
        """Whether all of these are there, after ``drop_damaged``."""
        if not set(names) <= set(self.files):
            return False
        self.drop_damaged(*names)
        return set(names) <= set(self.files)

    def weights(self) -> dict[str, NDArray[Any]]:
        """Read the weights by name, as they are stored.

        Raises:
            BundleError: the file is damaged.
        """
        from safetensors.numpy import load_file

        path = self.file(WEIGHTS)
        try:
            return dict(load_file(path))
        except Exception as error:  # its errors share no public base; a type that numpy lacks is a KeyError
            raise BundleError(f"{path} is no safetensors file, or damaged: {reason(error)}") from error

    def add(
        self,
        name: str,
        content: bytes | Callable[[Path], None],
        *,
        kind: str,
        precision: str = "",
        details: Mapping[str, Any] | None = None,
        force: bool = True,
    ) -> Path:
        """Add or replace a file, whole or not at all.

        Args:
            name: of the file, relative to the bundle.
            content: what it holds, or what writes it to a path that is given, of another name.
            kind: what it is: ``onnx``, ``document`` ...
            precision: of an artifact.
            details: what the manifest is to say of it.
            force: replace what has that name.

        Raises:
            OutputExists: the name is taken and ``force`` is False.
            UsageError: the place cannot be written, or the name leaves the bundle or hits its manifest.
        """
        if not _is_inside(name):
            raise UsageError(f"{self.path} cannot hold a file named {name!r}: choose a plain relative name")
        if name in self._own and self.sealed:
            raise UsageError(f"{self.path} is sealed and holds {name} already: copy it with `tfx export -o`")
        target = self.home / name
        if self.sealed:
            with writable(target):
                check_own(target.parent)
            caches.touch(self.home)
            caches.trim()  # before, as what is added now has to be there
        if name in self.files and not force:
            raise OutputExists(f"{self.path} holds {name} already: replace it with --force")
        with writable(target), folder(target.parent), beside(self.home / target.name) as work:
            path = work.path / f"0{target.suffix}"
            if callable(content):
                content(path)
            else:
                path.write_bytes(content)
            entry = _entry(path, kind, precision, details or {})
            with self._turn() as manifest:
                files = _entries(self.home, manifest)
                if name in files and not force:
                    raise OutputExists(f"{self.path} holds {name} already: replace it with --force")
                files[name] = entry
                write_manifest(work.path, manifest, files)
                # The file first: a name that the manifest does not have is not seen.
                publish(work, [Move(path.name, name), Move(MANIFEST, MANIFEST)], force=True)
                if not self.sealed:
                    self._own = files
        return target

    def copy_into(self, folder: Path) -> None:
        """Write a bundle like this one, what was added included, into a folder that nobody sees yet.

        Raises:
            BundleError: a file is damaged.
        """
        files = self.files
        for name in files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.file(name), folder / name)
        write_manifest(folder, {"spec": self.spec.to_dict(), "provenance": self.provenance}, files)

    def check_rechunk(self) -> None:
        """Refuse what ``rechunk`` cannot do.

        Raises:
            UsageError: the bundle is sealed, or holds more than weights (or a graph in place of them) and
                documents.
        """
        made = sorted(
            name for name, entry in self._own.items() if entry.kind not in ("weights", PUBLISHED, "document")
        )
        made += [str(path.relative_to(self.path)) for path in self.path.glob(f"{ONLY}/*.tfx")]
        if self.sealed:
            raise UsageError(
                f"{self.path} is sealed, its manifest stays as it is: write a new bundle with -o"
            )
        if made:
            raise UsageError(
                f"{self.path} holds {', '.join(made)}, made for its present chunking: write a new bundle "
                "with -o, and make them again there"
            )

    def rechunk(self, chunk: ChunkSpec, note: Mapping[str, Any]) -> None:
        """Change how the model cuts a signal, before anything was made from it.

        The spec is part of the digest that artifacts, engines and evidence are bound to: what was made for
        the old one would not fit the new one, so that there must be none of it.

        Args:
            chunk: the new chunking.
            note: added to the provenance.

        Raises:
            UsageError: the bundle is sealed, holds more than weights and documents, or cannot be written.
        """
        with writable(self.path), self._turn() as manifest:
            self.check_rechunk()  # as it is now: another process may have added something
            spec, provenance = replace(self.spec, chunk=chunk), {**self.provenance, **note}
            _replace_manifest(self.path, {**manifest, "spec": spec.to_dict(), "provenance": provenance})
        self.spec, self.provenance = spec, provenance

    def seal(self) -> None:
        """Close the bundle: from now on additions go to the user's cache."""
        with writable(self.path), self._turn() as manifest:
            _replace_manifest(self.path, {**manifest, "sealed": True})
        self.sealed = True

    @contextmanager
    def _turn(self) -> Iterator[dict[str, Any]]:
        """Hold the place where additions go, and give its manifest as it is now.

        Whoever else adds waits. What a killed process began is finished first.
        """
        with locked(self.home):
            sweep(self.home)
            if self.sealed:
                manifest = {"files": {name: asdict(entry) for name, entry in self._added().items()}}
            else:
                manifest = read_manifest(self.home)
            if not self.sealed:
                files = _entries(self.home, manifest)
                spec = ModelSpec.from_dict(manifest["spec"])
                if spec != self.spec or (
                    self.origin in self._own and files.get(self.origin) != self._own[self.origin]
                ):
                    raise BundleError(
                        f"{self.path} became another model while it was in use: run this again, on that"
                    )
                self._own = files
            yield manifest


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning("%s", message)


@contextmanager
def whole_bundle(path: Path, *, force: bool) -> Iterator[Path]:
    """Yield where to create a bundle that is at ``path``, additions included, when the block ends well.

    Raises:
        OutputExists: ``path`` is there and ``force`` is False, or it is not a bundle.
        UsageError: the place cannot be written.
    """
    with replacing_directory(path, force=force) as work:
        staged = work / "staged"
        yield staged
        for item in staged.iterdir():
            item.rename(work / item.name)
        staged.rmdir()


@contextmanager
def replacing_directory(path: Path, *, force: bool, named: bool = True) -> Iterator[Path]:
    """Yield an empty directory beside ``path`` that takes its place when the block ends well.

    Args:
        path: of the directory.
        force: replace what is there.
        named: a user typed this path: of a link, the folder behind it is replaced.

    Raises:
        OutputExists: ``path`` is there and ``force`` is False, or it is something we did not make.
        UsageError: the place cannot be written.
    """
    _check_place(path, force)
    with writable(path), new_folder(path, force=force, named=named) as work:
        yield work
        _check_place(path, force)  # it may have come to be meanwhile


def _check_place(path: Path, force: bool) -> None:
    if path.exists():
        if not force:
            raise OutputExists(f"{path} is there already: replace it with --force, or choose another name")
        if not _is_ours(path):
            raise OutputExists(f"{path} is there and is not a bundle: not replaced, choose another name")


@contextmanager
def writable(target: Path) -> Iterator[None]:
    """Have a failure to write be the user's to mend.

    Raises:
        UsageError: in place of any OSError of the block.
    """
    try:
        yield
    except OSError as error:
        raise UsageError(f"cannot write {target}: {error.strerror or error}; choose another place") from error


def _cast(weights: Mapping[str, NDArray[Any]], precision: str) -> dict[str, NDArray[Any]]:
    kinds = {"fp32": np.float32, "fp16": np.float16}
    if precision not in kinds:
        raise UsageError(f"weights cannot be stored in {precision!r}: choose {' or '.join(kinds)}")
    kind = kinds[precision]
    stored = {}
    for name, value in weights.items():
        floating = np.issubdtype(value.dtype, np.floating)
        with np.errstate(over="ignore"):
            # Not ascontiguousarray: it turns a scalar into a vector.
            stored[name] = np.asarray(value, dtype=kind if floating else None, order="C")
        if floating and not np.isfinite(stored[name]).all():
            raise BundleError(f"weight {name} is not finite in {precision}: not stored")
    return stored


def _entry(path: Path, kind: str, precision: str, details: Mapping[str, Any]) -> FileEntry:
    return FileEntry(sha256_of(path), path.stat().st_size, kind, precision, dict(details))


def _entries(path: Path, manifest: Mapping[str, Any]) -> dict[str, FileEntry]:
    try:
        files = manifest["files"].items()
        entries = {name: from_json(FileEntry, entry, name) for name, entry in files}
    except (KeyError, ValueError, AttributeError) as error:
        raise BundleError(f"{path / MANIFEST}: the list of files is damaged ({error})") from error
    for name in entries:
        if not _is_inside(name):
            raise BundleError(f"{path / MANIFEST} lists {name!r}, which is not in the bundle: do not use it")
    return entries


def _is_inside(name: str) -> bool:
    """Whether a name means a file of the bundle other than its manifest."""
    inner = PurePosixPath(name)
    return inner.parts not in ((), (MANIFEST,)) and not inner.is_absolute() and ".." not in inner.parts


def _is_ours(path: Path) -> bool:
    """Whether a folder is a bundle, be it damaged; other things have a manifest.json too."""
    try:
        return FORMAT.encode() in read_document(path / MANIFEST, METADATA_BYTES)
    except (OSError, ValueError):
        return False


def _seal(manifest: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in manifest.items() if key != "digest"}
    return sha256_of_json(rest)


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a bundle or an ensemble, whole and of this version.

    Raises:
        BundleError: it is neither, or damaged.
    """
    try:
        manifest = parse_json(read_document(path / MANIFEST, METADATA_BYTES))
    except FileNotFoundError:
        raise BundleError(f"{path} is not a bundle: it has no {MANIFEST}") from None
    except (OSError, ValueError) as error:
        raise BundleError(f"{path / MANIFEST} cannot be read: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise BundleError(f"{path / MANIFEST} is not a tfx manifest")
    if manifest.get("version") != VERSION:
        raise BundleError(
            f"{path}: bundle version {manifest.get('version')} is not {VERSION}, the one this tfx reads"
        )
    if manifest.get("digest") != _seal(manifest):
        raise BundleError(f"{path / MANIFEST} is damaged: its own digest does not match; restore it")
    return manifest


def write_manifest(path: Path, manifest: Mapping[str, Any], files: Mapping[str, FileEntry]) -> None:
    """Into a folder that nobody sees yet."""
    whole = {**manifest, "files": {name: asdict(entry) for name, entry in sorted(files.items())}}
    (path / MANIFEST).write_bytes(_manifest_text(whole))


def _replace_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    with writing(path / MANIFEST) as stream:
        stream.write(_manifest_text(manifest))


def _manifest_text(manifest: Mapping[str, Any]) -> bytes:
    whole = {**manifest, "format": FORMAT, "version": VERSION}
    whole["digest"] = _seal(whole)
    return json.dumps(whole, indent=1, sort_keys=True).encode() + b"\n"
