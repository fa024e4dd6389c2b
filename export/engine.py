"""TensorRT engines from a bundle's ONNX graph, by TensorRT or TensorRT-RTX.

    model.onnx (checked against its hash) -> parser -> types checked -> builder -> engines/<key>.engine

The two libraries share the part of their API that is used here. TensorRT-RTX builds without a GPU, for every
GPU that it supports or for those of one compute capability; TensorRT builds on, and only for, the GPU that
will run the engine. Since TensorRT 11 both are strongly typed: the precision of an engine is that of the
graph, no flag changes it, so the graph's types are checked before it is built.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import importlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tfswa.export.artifact import bundle_of
from tfswa.export.precision import FULL, Precision, PrecisionPlan
from tfswa.runtime import atomic
from tfswa.runtime.bundle import Bundle
from tfswa.runtime.errors import BackendUnavailable, ExportError, UsageError
from tfswa.runtime.models import Model

Flavor = Literal["auto", "rtx", "tensorrt"]
PORTABLE = "portable"  # target of an engine that is not bound to one GPU
CAPABILITY = "compute capability "

_MODULES = {"rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
_INSTALL = {
    "rtx": "pip install 'tfswa[trt-rtx]'",
    "tensorrt": "pip install tensorrt, or use --flavor rtx",
}
_WHOLE = {"INT32", "INT64", "BOOL"}  # shapes and indices
_TYPES = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16"}
_LAYERS = {"CONVOLUTION": "Conv", "DECONVOLUTION": "ConvTranspose", "MATRIX_MULTIPLY": "MatMul"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Engine:
    """An engine in a bundle.

    Attributes:
        bundle: the bundle that it went to.
        file: its path.
        bytes: its size.
        key: hash of ``details``, the name of the file.
        details: everything that tells it from another engine, as the manifest has it: ``onnx_sha256``,
            ``flavor``, ``version`` of the library, ``precision``, ``batch`` (min, opt, max), ``target``.
        cached: whether it was there already.
        seconds: of the build, or of the look-up.
    """

    bundle: Path
    file: Path
    bytes: int
    key: str
    details: Mapping[str, Any]
    cached: bool
    seconds: float


@dataclass(frozen=True)
class BuildOptions:
    """What a user may choose.

    Attributes:
        precision: of the graph that is built: that of the layers, see ``export/precision.py``.
        flavor: ``rtx``, ``tensorrt``, or ``auto``: TensorRT where it and a GPU are there, else RTX.
        batch: smallest, best and largest batch.
        capability: compute capability of the GPUs to build for, such as ``8.9``; default: that of the GPU
            here; without one, or where the library does not name it, every GPU that RTX supports.
        timing_cache: file in which measured kernels are kept from build to build; it grows. TensorRT only.
        workspace_mb: most GPU memory that one layer may take for itself, in MB; default: the library's.
    """

    precision: Precision = "fp32"
    flavor: Flavor = "auto"
    batch: tuple[int, int, int] = (1, 1, 1)
    capability: str | None = None
    timing_cache: Path | None = None
    workspace_mb: int | None = None


def build_engine(
    model: Model,
    options: BuildOptions = BuildOptions(),
    *,
    force: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> Engine:
    """Build an engine from a bundle's ONNX graph, or find the one that was built before.

    One process builds in a bundle at a time; one that waited finds what the other one built.

    Args:
        model: a bundle that holds an ONNX artifact in the precision.
        options: what to build.
        force: build even if the bundle holds the engine.
        report: told in one line that a build begins; not called where the engine is there already.

    Raises:
        UsageError: options out of order, or the model is an exported file.
        BackendUnavailable: the library, its GPU, or the ONNX artifact is missing.
        BundleError: the ONNX artifact is damaged.
        ExportError: the graph cannot be parsed or built, or is not of its precision.
    """
    start = time.perf_counter()
    if not 1 <= options.batch[0] <= options.batch[1] <= options.batch[2]:
        sizes = ",".join(map(str, options.batch))
        raise UsageError(f"batch {sizes} is not MIN <= OPT <= MAX, each 1 or more: put it in order")
    bundle = bundle_of(model, "build-engine")
    name, digest = model.artifact("onnx", options.precision)
    flavor, library = _library(options.flavor)
    if options.timing_cache is not None and flavor == "rtx":
        raise UsageError(
            f"flavor rtx measures no kernels while it builds, {options.timing_cache} would stay empty: "
            "leave --timing-cache out"
        )
    made_for = _target(library, flavor, options.capability)
    details = {
        "onnx_sha256": digest,
        "flavor": flavor,
        "version": str(library.__version__),
        "precision": options.precision,
        "batch": list(options.batch),
        "target": made_for,
    }
    key = hashlib.sha256(json.dumps(details, sort_keys=True).encode()).hexdigest()[:16]
    target = f"engines/{key}.engine"
    cached = target in bundle.files and not force
    if not cached:
        with _turn(bundle, report):
            fresh = Bundle.open(bundle.path)  # another process may have built it meanwhile
            cached = target in fresh.files and not force
            if cached:
                bundle = fresh
            else:
                report(f"building with {library.__name__} {library.__version__}: 10 s or so for 1M weights")
                plan = _build(library, model, name, options, made_for)
                bundle.add(target, _writer(plan), kind="engine", precision=options.precision, details=details)
    file = bundle.file(target)
    return Engine(bundle.home, file, file.stat().st_size, key, details, cached, time.perf_counter() - start)


@contextmanager
def _turn(bundle: Bundle, report: Callable[[str], None]) -> Iterator[None]:
    """Wait until no other process builds in this bundle, and keep others waiting."""
    place = bundle.home / "engines"
    with atomic.folder(place):
        handle = os.open(place, os.O_RDONLY)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                report(f"waiting for another process that builds in {place}")
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def _library(flavor: Flavor) -> tuple[str, Any]:
    """Import the library of a flavour."""
    if flavor == "auto":
        import torch

        if torch.cuda.is_available():
            try:
                return "tensorrt", importlib.import_module(_MODULES["tensorrt"])
            except (ImportError, OSError) as error:
                logger.info("tensorrt cannot be imported (%s): taking tensorrt_rtx", error)
        flavor = "rtx"
    try:
        return flavor, importlib.import_module(_MODULES[flavor])
    except (ImportError, OSError) as error:  # OSError: the package is there, a library of it is not
        raise BackendUnavailable(
            f"flavor {flavor} needs {_MODULES[flavor]} ({error}): {_INSTALL[flavor]}"
        ) from error


def _target(library: Any, flavor: str, capability: str | None) -> str:
    """What an engine is for: a GPU by name, a compute capability, or all that the library supports."""
    import torch

    here = torch.cuda.is_available()
    own = ".".join(map(str, torch.cuda.get_device_capability())) if here else None
    if flavor == "tensorrt":
        if own is None:
            raise BackendUnavailable(
                "flavor tensorrt builds on the GPU that runs the engine, 0 CUDA devices found: "
                "use --flavor rtx"
            )
        if capability not in (None, own):
            raise UsageError(
                f"flavor tensorrt builds for the GPU here, of compute capability {own}, asked for is "
                f"{capability}: build there, or use --flavor rtx"
            )
        return f"{torch.cuda.get_device_name()}, {CAPABILITY}{own}"
    known = _capabilities(library)
    if capability is None:
        return f"{CAPABILITY}{own}" if own in known else PORTABLE
    if capability not in known:
        raise UsageError(
            f"{library.__name__} {library.__version__} builds for compute capability {', '.join(known)}, "
            f"asked for is {capability}: choose one, or leave --compute-capability out for all of them"
        )
    return f"{CAPABILITY}{capability}"


def _capabilities(library: Any) -> dict[str, Any]:
    """Compute capabilities that TensorRT-RTX can be told to build for: ``8.9`` and its member."""
    members = library.ComputeCapability.__members__.items()
    numbers = {name.removeprefix("SM"): member for name, member in members if name.startswith("SM")}
    return {f"{number[:-1]}.{number[-1]}": member for number, member in numbers.items()}


def _build(library: Any, model: Model, name: str, options: BuildOptions, target: str) -> Any:
    """Parse, check and build; the engine as a buffer."""
    log = _logger(library)
    log.errors.clear()
    builder = library.Builder(log)
    network = builder.create_network(1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = library.OnnxParser(network, log)
    if not parser.parse(model.file(name).read_bytes()):
        errors = [_parser_error(parser.get_error(index)) for index in range(parser.num_errors)]
        raise ExportError(f"{name} is not accepted by {library.__name__}: {'; '.join(errors)}")
    assert model.bundle is not None
    check_types(network, name, options.precision, model.bundle.files[name].details.get("plan", []))
    profile = builder.create_optimization_profile()
    profile.set_shape(network.get_input(0).name, *(model.spec.input_shape(items) for items in options.batch))
    config = builder.create_builder_config()
    # On by default, and it rounds factors to 10 bits on Ampere and later: not what fp32 means here.
    config.clear_flag(library.BuilderFlag.TF32)
    if options.workspace_mb is not None:
        config.set_memory_pool_limit(library.MemoryPoolType.WORKSPACE, options.workspace_mb << 20)
    if target.startswith(CAPABILITY):
        config.num_compute_capabilities = 1
        config.set_compute_capability(_capabilities(library)[target.removeprefix(CAPABILITY)], 0)
    if options.timing_cache is not None:
        _load_timings(config, options.timing_cache)
    added = config.add_optimization_profile(profile) >= 0
    plan = builder.build_serialized_network(network, config) if added else None
    if plan is None:
        raise ExportError(
            f"{library.__name__} {library.__version__} built no engine from {name}: "
            f"{'; '.join(log.errors) or 'no reason given'}"
        )
    if options.timing_cache is not None:
        _store_timings(config, options.timing_cache)
    return plan


def check_types(network: Any, name: str, precision: Precision, plan: list[str]) -> None:
    """See that a parsed network computes in the precision that it is said to be in.

    Args:
        network: ``INetworkDefinition``.
        name: of the graph's file.
        precision: of the graph.
        plan: modules that its precision plan keeps in float32.

    Raises:
        ExportError: a layer with weights or a product is of another type, or anything is of a third one.
    """
    low, keeps = _TYPES[precision], PrecisionPlan(tuple(plan)).keeps
    lacks = FULL.get(precision, frozenset())
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        wanted = {low, "FLOAT", *_WHOLE}
        operator = _LAYERS.get(layer.type.name)
        if operator is not None and operator not in lacks and not keeps(layer.name):
            wanted = {low}
        for output in range(layer.num_outputs):
            found = layer.get_output(output).dtype.name
            if found not in wanted:
                raise ExportError(
                    f"{name} is recorded as {precision}, its layer {layer.name} gives {found}: "
                    "export it again"
                )


def _load_timings(config: Any, path: Path) -> None:
    """Give a build what earlier ones measured."""
    cache = config.create_timing_cache(path.read_bytes() if path.exists() else b"")
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        raise UsageError(
            f"timing cache {path} is damaged, or of another GPU or version: choose another file, or remove it"
        )


def _store_timings(config: Any, path: Path) -> None:
    """Add what was measured to the file, and keep what other processes added meanwhile."""
    handle = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        cache = config.get_timing_cache()
        if path.exists():
            cache.combine(config.create_timing_cache(path.read_bytes()), ignore_mismatch=False)
        with atomic.writing(path) as stream:
            stream.write(bytes(cache.serialize()))
    finally:
        os.close(handle)


def _parser_error(error: Any) -> str:
    where = f" (node {error.node_name()}, {error.node_operator()})" if error.node_name() else ""
    return " ".join(str(error.desc()).split()) + where


@functools.cache
def _logger(library: Any) -> Any:
    """The one logger of a library: it keeps the first that it is given for as long as the process lives."""

    class Log(library.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (library.ILogger.INTERNAL_ERROR, library.ILogger.ERROR):
                self.errors.append(" ".join(message.split()))
            elif severity == library.ILogger.WARNING:
                logger.warning("%s: %s", library.__name__, message)

    return Log()


def _writer(plan: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(plan)

    return write
