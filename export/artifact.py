"""From an exporter to a file in a bundle: convert, compare, and only then add.

Model -> eager network -> convert -> file in a temporary folder -> check_graph -> Bundle.add

Of a bundle that holds a published graph in place of weights, that graph stands in for the eager network.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from tfswa.export.check import check_graph, check_tensors
from tfswa.runtime.backends.engines import ANSWER, ENGINE, KEY, TRANSFORM
from tfswa.runtime.errors import BundleError, OutputExists, UsageError
from tfswa.runtime.files.atomic import writing
from tfswa.runtime.files.partial import temporary
from tfswa.runtime.model import trust
from tfswa.runtime.model.bundle import Bundle, whole_bundle
from tfswa.runtime.model.narrowed import copy_narrowed
from tfswa.runtime.model.opening import FileModel, Model, open_model
from tfswa.runtime.stream.codec import Tensors
from tfswa.train.published import source_network

Convert = Callable[[nn.Module, Path], Mapping[str, Any]]
ENDINGS = (".onnx", ".ts", ".pt2")
Compared = tuple[Tensors, str]  # what a network takes of two chunks, and what to call them


@dataclass(frozen=True)
class _Order:
    """What ``produce`` was asked to make of a model; see there."""

    model: Model
    name: str
    kind: str
    convert: Convert
    precision: str
    audio: Path | None
    compared_on: Compared | None


@dataclass(frozen=True)
class Exported:
    """What an export made.

    Attributes:
        bundle: the bundle that it went to.
        file: the artifact.
        bytes: its size.
        format: ``onnx``, ``torchscript`` or ``aotinductor``.
        precision: ``fp32``, ``fp16`` or ``bf16``.
        against: what it was compared with, in words.
        snr_db: by stem, against that; ``math.inf`` where exact.
        details: as the manifest has them.
        seconds: of the whole export, comparison included.
    """

    bundle: Path
    file: Path
    bytes: int
    format: str
    precision: str
    against: str
    snr_db: Mapping[str, float]
    details: Mapping[str, Any]
    seconds: float


def produce(
    model: Model,
    name: str,
    kind: str,
    convert: Convert,
    precision: str = "fp32",
    *,
    output: Path | None = None,
    audio: Path | None = None,
    compared_on: Compared | None = None,
    force: bool = False,
) -> Exported:
    """Export a model into its bundle, into a copy of it, or into a file alone.

    Args:
        model: a bundle.
        name: file name of the artifact.
        kind: ``onnx``, ``torchscript`` or ``aotinductor``.
        convert: writes the graph of the network to a path and returns details for the manifest.
        precision: of the artifact.
        output: where a copy of the bundle goes, whole or not at all, or the artifact alone where it ends as
            that does (``.onnx``, ``.ts``, ``.pt2``); default: into the model's bundle.
        audio: what to compare on, see ``check_tensors``.
        compared_on: likewise, already made, and what to call it.
        force: replace the artifact, or with ``output`` the bundle there.

    Raises:
        UsageError: the model is an exported file, its bundle is sealed and has the artifact built in, or
            ``output`` ends as another kind of artifact does.
        OutputExists: the artifact or ``output`` is there and ``force`` is False.
        ExportError: the graph differs from eager; nothing is written.
    """
    bundle = bundle_of(model, "export")
    order = _Order(model, name, kind, convert, precision, audio, compared_on)
    if output is None:
        check_free(bundle, name, force=force)
        return _produce(order, bundle)
    if output.suffix in ENDINGS:
        return _alone(order, bundle, output, force)
    with bundle_copy(bundle, output, without=name, force=force) as copy:
        made = _produce(order, copy)
        copy_narrowed(bundle, copy.path)
    return replace(made, bundle=output, file=output / name)


def _alone(order: _Order, bundle: Bundle, output: Path, force: bool) -> Exported:
    """Write the artifact as a file of its own: it carries the spec inside, and the bundle is as it was."""
    ending = Path(order.name).suffix
    if output.suffix != ending:
        raise UsageError(
            f"{output} ends in {output.suffix}, but --format {order.kind} makes {ending}: change either"
        )
    if output.exists() and not force:
        raise OutputExists(f"{output} is there already: replace it with --force")
    with temporary("export") as folder:
        place = folder / "inner" / "copy.tfx"  # nothing is published into a locked folder
        with bundle_copy(bundle, place, without=order.name, force=False) as copy:
            made = _produce(order, copy)
        output.parent.mkdir(parents=True, exist_ok=True)
        with writing(output, named=True, force=force) as target, (place / order.name).open("rb") as source:
            shutil.copyfileobj(source, target)
    return replace(made, bundle=bundle.path, file=output)


def bundle_of(model: Model, command: str) -> Bundle:
    """The bundle of a model that must have one.

    Raises:
        UsageError: the model is an exported file.
    """
    if model.bundle is None:
        raise UsageError(f"{model.name} is an exported file, `tfx {command}` needs a bundle: name that")
    return model.bundle


def check_weights(model: Model, kind: str) -> None:
    """Refuse what is made of a network in torch where there is none.

    Raises:
        UsageError: the bundle holds a published graph in place of weights.
    """
    if model.spec.family is None:
        raise UsageError(
            f"{model.name} is a published graph without weights, of which torch makes no {kind}: "
            "use --format onnx"
        )


def check_free(bundle: Bundle, name: str, *, force: bool) -> None:
    """Refuse before the work what ``Bundle.add`` would refuse after it.

    Raises:
        UsageError: the bundle is sealed and the name is its own.
        OutputExists: the name is taken and ``force`` is False.
    """
    if bundle.sealed and (bundle.path / name).exists():
        raise UsageError(
            f"{bundle.path} is sealed and holds {name} already: make a copy of it with `tfx export -o BUNDLE`"
        )
    if name in bundle.files and not force:
        raise OutputExists(f"{bundle.path} holds {name} already: replace it with --force")


@contextmanager
def bundle_copy(source: Bundle, path: Path, *, without: str, force: bool) -> Iterator[Bundle]:
    """Yield an unsealed copy of a bundle that takes its place at ``path`` when the block ends well.

    Weights, or the graph in place of them, go byte for byte. The artifact ``without`` stays behind, being
    about to be made anew, and so do engines that were built from it.

    Raises:
        OutputExists: ``path`` is there and ``force`` is False, or it is not a bundle.
        BundleError: a file of the source is damaged.
    """
    files = {name: entry for name, entry in source.files.items() if name != without}
    hashes = {entry.sha256 for entry in files.values()}
    with whole_bundle(path, force=force) as place:
        copy = source.copy_bare(place)
        for name, entry in files.items():
            if name == source.origin or (
                entry.kind in (ENGINE, TRANSFORM, ANSWER, KEY)
                and entry.details.get("onnx_sha256") not in hashes
            ):
                continue
            copy.add(
                name,
                _copier(source.file(name)),
                kind=entry.kind,
                precision=entry.precision,
                details=entry.details,
            )
        if copy.digest != source.digest:
            raise BundleError(f"the copy of {source.path} is another model: its digest differs, not written")
        yield copy


def finite_or_none(values: Mapping[str, float]) -> dict[str, float | None]:
    """Decibels for JSON, which has no infinity: two decimals, None where exact."""
    return {name: round(value, 2) if math.isfinite(value) else None for name, value in values.items()}


def _produce(order: _Order, bundle: Bundle) -> Exported:
    start = time.perf_counter()
    given, on = order.compared_on or (  # first: a bad file should not cost an export
        check_tensors(order.model.spec, order.audio),
        order.audio.name if order.audio else "generated music",
    )
    network = source_network(order.model)
    with temporary("export") as folder:
        path = folder / order.name
        details = dict(order.convert(network, path))
        opened = open_model(path)
        assert isinstance(opened, FileModel)
        if order.kind in trust.CODE:
            trust.made_here(opened.sha256)
        snr_db, peak = check_graph(network, opened, given, on=on)
        details |= {
            "snr_db": finite_or_none(snr_db),
            "compared_on": on,
        }
        if peak is not None:
            details["peak"] = asdict(peak)
        file = bundle.add(
            order.name, _copier(path), kind=order.kind, precision=order.precision, details=details
        )
    seconds = time.perf_counter() - start
    size = file.stat().st_size
    against = "eager" if order.model.spec.family is not None else "the published graph"
    return Exported(bundle.home, file, size, order.kind, order.precision, against, snr_db, details, seconds)


def _copier(source: Path) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        shutil.copyfile(source, path)

    return write
