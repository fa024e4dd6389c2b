"""Which engine of a bundle fits this place, every reason why one does not, and what one takes and gives."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tfswa.runtime.backends import import_library
from tfswa.runtime.backends.chain import End, Link
from tfswa.runtime.backends.cuda import Device
from tfswa.runtime.backends.engines import ANSWER, CAPABILITY, ENGINE, MODULES, PORTABLE, TRANSFORM, answer_of
from tfswa.runtime.errors import BackendUnavailable, BundleError
from tfswa.runtime.model.spec import DECODE, ENCODE, Shapes

if TYPE_CHECKING:
    from tfswa.runtime.model.bundle import Bundle
    from tfswa.runtime.model.opening import Model

TYPES: dict[str, np.dtype[Any]] = {"FLOAT": np.dtype(np.float32), "HALF": np.dtype(np.float16)}
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Built:
    """An engine in a bundle.

    Attributes:
        name: of its file.
        sha256: of its file.
        details: as the manifest has them, see ``Engine`` in ``export/engine.py``.
        command: builds one like it.
        library: what runs it, or why that cannot be imported.
    """

    name: str
    sha256: str
    details: Mapping[str, Any]
    command: str
    library: Any

    @property
    def batch(self) -> int:
        """Largest batch that it was built for."""
        return int(self.details["batch"][-1])


def built_engines(model: Model, precision: str) -> list[Built]:
    """Engines of a model in a precision, at least one."""
    bundle = bundle_with_engines(model)
    build = f"tfx build-engine {model.name} --precision {precision}"
    bundle.drop_damaged(*(name for name, entry in bundle.files.items() if entry.kind in (ENGINE, ANSWER)))
    for name, entry in bundle.files.items():
        if entry.kind in (ENGINE, TRANSFORM) and not _is_description(entry.details):
            raise BundleError(
                f"the manifest of {model.name} says of {name} what no build says: build it again"
            )
    found = _of_kind(bundle, ENGINE, precision, build)
    if not found:
        raise BackendUnavailable(f"{model.name} holds no engine in {precision}: build one with `{build}`")
    return found


def _of_kind(bundle: Bundle, kind: str, precision: str, build: str) -> list[Built]:
    return [
        Built(name, entry.sha256, entry.details, _command(build, entry.details), _library(entry.details))
        for name, entry in bundle.files.items()
        if entry.kind == kind and entry.precision == precision
    ]


def _is_description(details: Mapping[str, Any]) -> bool:
    """Whether a manifest says of an engine what ``export/engine.py`` writes."""
    batch = details.get("batch")
    return (
        details.get("flavor") in MODULES
        and all(isinstance(details.get(key), str) for key in ("onnx_sha256", "target", "version"))
        and isinstance(batch, list)
        and batch != []
        and all(type(items) is int for items in batch)
    )


def bundle_with_engines(model: Model) -> Bundle:
    """The bundle of a model; raises BackendUnavailable for an exported file."""
    if model.bundle is None:
        raise BackendUnavailable(
            f"{model.name} is an exported file, engines are in bundles: name the bundle, or use --backend ort"
        )
    return model.bundle


def _command(build: str, details: Mapping[str, Any]) -> str:
    return f"{build} --flavor {details['flavor']} --batch {','.join(map(str, details['batch']))}"


def _library(details: Mapping[str, Any]) -> Any:
    try:
        return import_library(MODULES[details["flavor"]], backend="trt")
    except BackendUnavailable as error:
        return error


def fitting(model: Model, precision: str, built: list[Built], device: Device) -> Built:
    """The engine that fits this place: of several, one for this GPU alone, then the largest batch."""
    graph = model.artifact("onnx", precision)
    amiss = {engine.name: list(_differences(engine, graph, device)) for engine in built}
    fitting = [engine for engine in built if not amiss[engine.name]]
    if fitting:
        return max(fitting, key=lambda engine: (engine.details["target"] != PORTABLE, engine.batch))
    nearest = min(built, key=lambda engine: len(amiss[engine.name]))
    if isinstance(nearest.library, BackendUnavailable) and len(amiss[nearest.name]) == 1:
        raise nearest.library
    raise BackendUnavailable(
        f"{nearest.name} {' and '.join(amiss[nearest.name])}: rebuild it with `{nearest.command}`"
    )


def fitting_transforms(model: Model, network: Built, device: Device) -> list[Built]:
    """Engines of the transform and its inverse to go before and behind a network's; none if one is missing.

    They are of the same library, so that they can share a stream and memory, and take the same batches.
    """
    bundle = bundle_with_engines(model)
    if not bundle.holds(ENCODE, DECODE):
        return []
    known = [replace(engine, command=network.command) for engine in _of_kind(bundle, TRANSFORM, "fp32", "")]
    found = []
    for name in (ENCODE, DECODE):
        graph = name, bundle.files[name].sha256
        fit = [
            engine
            for engine in known
            if engine.details["batch"] == network.details["batch"]
            and engine.library is network.library
            and not list(_differences(engine, graph, device))
            and bundle.holds(engine.name, answer_of(engine.name))
        ]
        if not fit:
            how = f"`{network.command}` builds one"
            logger.info("no engine of %s in %s fits: the CPU transforms; %s", name, model.name, how)
            return []
        found.append(max(fit, key=lambda engine: engine.details["target"] != PORTABLE))
    return found


def _differences(engine: Built, graph: tuple[str, str], device: Device) -> Iterator[str]:
    """What keeps an engine from running here, each with the two values that differ."""
    target, version = engine.details["target"], engine.details["version"]
    own = f"{CAPABILITY}{device.capability}"
    if isinstance(engine.library, BackendUnavailable):
        yield f"needs {MODULES[engine.details['flavor']]}, which is not here"
    elif str(engine.library.__version__) != version:
        here = f"{engine.library.__name__} here is {engine.library.__version__}"
        yield f"was built by version {version}, {here}"
    if target not in (PORTABLE, own, f"{device.name}, {own}"):
        yield f"was built for {target}, {device.label} is {device.name}, {own}"
    if engine.details["onnx_sha256"] != graph[1]:
        built_from = str(engine.details["onnx_sha256"])[:12]
        yield f"was built from other weights (SHA-256 {built_from}, {graph[0]} has {graph[1][:12]})"


def staged(name: str, library: Any, engine: Any, takes: Shapes, gives: Shapes) -> tuple[Link, int, int]:
    """An engine whose inputs and outputs are as a model's spec has them; smallest and largest batch."""
    modes = {
        tensor: engine.get_tensor_mode(tensor)
        for tensor in map(engine.get_tensor_name, range(engine.num_io_tensors))
    }
    wanted = dict.fromkeys(takes, library.TensorIOMode.INPUT)
    wanted |= dict.fromkeys(gives, library.TensorIOMode.OUTPUT)
    if modes != wanted:
        raise BundleError(
            f"{name} has the inputs and outputs {', '.join(modes)}, its model's are {' and '.join(wanted)}: "
            "build it with `tfx build-engine`"
        )
    types = {tensor: engine.get_tensor_dtype(tensor).name for tensor in wanted}
    if not set(types.values()) <= set(TYPES):
        said = ", ".join(f"{tensor} {kind}" for tensor, kind in types.items())
        raise BundleError(f"{name} has {said}, each may be {' or '.join(TYPES)}")
    batches = set()
    for tensor, size in takes.items():
        smallest, _, largest = (tuple(shape) for shape in engine.get_tensor_profile_shape(tensor, 0))
        batches.add((smallest[0], largest[0]))
        for shape in (smallest, largest):
            if shape[1:] != size:
                raise BundleError(
                    f"{name} takes {list(shape)}, the model's spec says {[shape[0], *size]}: "
                    "export the model and build the engine again"
                )
    if len(batches) > 1:
        said = " and ".join(f"{smallest} to {largest}" for smallest, largest in sorted(batches))
        raise BundleError(f"{name} takes batches of {said}, by its inputs: build the engine again")
    taken, given = (
        {tensor: End(shape, TYPES[types[tensor]]) for tensor, shape in ends.items()}
        for ends in (takes, gives)
    )
    return Link(engine, taken, given), *batches.pop()
