"""A network that gives some of the stems alone, from one that gives more: what makes the others is left out.

Where the stems are can be seen from the shapes that the family's network has with fewer of them: modules of
which there is one a stem, and weights that lie one stem after the other along an axis. A network whose stems
do not come apart so gives something else then, and is refused.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tfswa.export.artifact import bundle_of
from tfswa.export.check import check_tensors
from tfswa.runtime.backends.torchscript import run_torch
from tfswa.runtime.errors import BundleError, ConfigError, ExportError, UsageError
from tfswa.runtime.files.atomic import folder
from tfswa.runtime.files.locks import locked
from tfswa.runtime.files.own_folders import check_own
from tfswa.runtime.files.partial import temporary
from tfswa.runtime.gates import gate_for
from tfswa.runtime.metrics import likeness_db
from tfswa.runtime.model.bundle import WEIGHTS, Bundle, writable
from tfswa.runtime.model.narrowed import PART_OF, place_of
from tfswa.runtime.model.opening import BundleModel, Model
from tfswa.runtime.model.spec import ModelSpec
from tfswa.runtime.parity.figures import output_parts
from tfswa.runtime.stream.codec import Tensors
from tfswa.train.backend import load_network, network_with
from tfswa.train.families import build_network, new_spec

Weights = Mapping[str, NDArray[Any]]


@contextmanager
def narrow(model: Model, stems: Sequence[str], *, inside: bool) -> Iterator[Model]:
    """A model of some stems of another one alone, for a block.

    Args:
        model: a bundle with weights.
        stems: some of those that its network gives.
        inside: put it into that bundle, or take it from there; otherwise it is gone after the block.

    Raises:
        UsageError: an exported file, a published graph, or stems that are no part of what the network gives.
        ExportError: the network does not come apart.
    """
    bundle = bundle_of(model, "export")
    if model.spec.family is None:
        raise UsageError(
            f"{model.name} is a published graph, whose stems do not come apart: leave --stems out"
        )
    wanted = _checked(model, stems)
    if not inside:
        with temporary("export") as work:
            yield _made(model, bundle, wanted, work / "inner" / place_of(bundle, wanted).name)
        return
    place = place_of(bundle, wanted)
    with writable(place):
        check_own(place, None if bundle.sealed else bundle.path)
    yield _there(bundle, wanted, place) or _made(model, bundle, wanted, place)


def _there(bundle: Bundle, stems: Sequence[str], place: Path) -> BundleModel | None:
    """One that was made before, is whole, and still suits its bundle."""
    try:
        found = Bundle.open(place)
        found.file(found.origin)
    except BundleError:
        return None
    suits = found.provenance.get(PART_OF) == bundle.digest and found.spec.stems == tuple(stems)
    return BundleModel(str(place), found) if suits else None


def _checked(model: Model, stems: Sequence[str]) -> tuple[str, ...]:
    """The stems in the network's order."""
    spec = model.spec
    for stem in stems:
        if stem not in spec.stems:
            raise UsageError(f"{model.name} has no stem {stem!r}, it has {', '.join(spec.stems)}")
        if stem == spec.residual_stem:
            raise UsageError(
                f"{stem} of {model.name} is what all others leave of the mixture: it cannot do without them"
            )
    wanted = tuple(stem for stem in spec.outputs if stem in stems)
    if wanted == spec.outputs:
        raise UsageError(
            f"the network of {model.name} gives {', '.join(wanted)} and no other stem: leave --stems out"
        )
    return wanted


def _made(model: Model, bundle: Bundle, stems: Sequence[str], place: Path) -> BundleModel:
    """The bundle of these stems, written; one that is there is replaced."""
    full = model.spec
    try:
        spec = new_spec(
            str(full.family),
            stems=stems,
            channels=full.channels,
            hyper=full.hyper,
            stft=full.stft,
            chunk=full.chunk,
            unseen_stem=full.unseen_stem if full.unseen_stem in stems else None,
            weights_license=full.weights_license,
        )
        places = [full.outputs.index(stem) for stem in stems]
        weights = narrowed_weights(bundle.weights(), full, spec, places)
    except ConfigError as error:
        raise ExportError(f"{model.name}: no network of {', '.join(stems)} alone: {error}") from error
    _compare(model, spec, weights)
    provenance = {**bundle.provenance, PART_OF: bundle.digest}
    precision = bundle.files[WEIGHTS].precision
    with writable(place), folder(place.parent), locked(place.parent):
        meanwhile = _there(bundle, stems, place)  # by another process, which may have added to it
        if meanwhile is not None:
            return meanwhile
        made = Bundle.create(place, spec, weights, provenance=provenance, precision=precision, force=True)
    return BundleModel(str(place), made)


def narrowed_weights(weights: Weights, full: ModelSpec, spec: ModelSpec, places: Sequence[int]) -> Weights:
    """Of the weights of a network those of some of its stems.

    Args:
        weights: by name.
        full: what they are of.
        spec: what fewer are to be of.
        places: which of the stems of the one the other's are.

    Raises:
        ConfigError: it cannot be told which weights are a stem's.
    """
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in build_network(spec).state_dict().items()}
    many, few = _lists(weights), _lists(shapes)
    of_stems = {
        name
        for name, numbers in few.items()
        if many.get(name) == set(range(len(full.outputs))) and numbers == set(range(len(places)))
    }
    found = {}
    for name, shape in shapes.items():
        parts = name.split(".")
        known = [
            str(places[int(part)]) if ".".join(parts[:at]) in of_stems and part.isdigit() else part
            for at, part in enumerate(parts)
        ]
        value = weights.get(".".join(known))
        if value is None:
            raise ConfigError(f"its weights have no {'.'.join(known)}, which that network has")
        found[name] = _rows(name, value, shape, len(full.outputs), places)
    return found


def _lists(names: Mapping[str, Any]) -> dict[str, set[int]]:
    """Numbered modules by what they are numbered under."""
    found: dict[str, set[int]] = {}
    for name in names:
        parts = name.split(".")
        for at, part in enumerate(parts):
            if part.isdigit():
                found.setdefault(".".join(parts[:at]), set()).add(int(part))
    return found


def _rows(
    name: str, value: NDArray[Any], shape: Sequence[int], stems: int, places: Sequence[int]
) -> NDArray[Any]:
    """What is of some stems along the axis on which they lie one after the other."""
    if value.shape == tuple(shape):
        return value
    axes = [at for at, sizes in enumerate(zip(value.shape, shape, strict=False)) if sizes[0] != sizes[1]]
    axis = axes[0] if axes else 0
    if (
        value.ndim != len(shape)
        or len(axes) != 1
        or value.shape[axis] % stems
        or shape[axis] != value.shape[axis] // stems * len(places)
    ):
        raise ConfigError(f"its {name} is {list(value.shape)}, that network's {list(shape)}")
    apart = value.reshape(*value.shape[:axis], stems, -1, *value.shape[axis + 1 :])
    return np.take(apart, places, axis).reshape(shape)


def _compare(model: Model, spec: ModelSpec, weights: Weights) -> None:
    """That the network gives what the whole one gives, or so that rounding tells them apart alone."""
    given = check_tensors(spec)
    right = _answer(load_network(model), model.spec, given)
    gc.collect()  # two networks at once may be too large
    found = _answer(network_with(weights, spec, model.name), spec, given)
    gate = gate_for("fp32").snr_db
    for part, value in found.items():
        alike = likeness_db(right[part], value)
        if not alike >= gate:
            raise ExportError(
                f"{spec.family} has no weights of one stem alone: without those of the others {part} is "
                f"another, SNR {alike:.1f} dB, gate {gate:g} dB; not written"
            )


def _answer(network: nn.Module, spec: ModelSpec, given: Tensors) -> Tensors:
    return output_parts(spec, run_torch(network, spec, given, torch.device("cpu")))
