"""From an ONNX graph to a serialized engine, through the API that ``tensorrt`` and ``tensorrt_rtx`` share.

What is built, for whom and under which key is decided in ``engine.py``. Here the graph is parsed, the types
of its layers are compared with its precision, and the builder runs, which can be watched and stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfswa.export.plan import QUANTIZED, Precision, PrecisionPlan
from tfswa.export.precision import FULL
from tfswa.runtime.backends.engines import errors_of, library_logger
from tfswa.runtime.errors import ExportError, UsageError
from tfswa.runtime.files import atomic
from tfswa.runtime.files.locks import locked
from tfswa.runtime.files.signals import held_back

Shape = tuple[int, ...]
BuildProgress = Callable[[str, int, int], None]  # a phase, its steps done, its steps in all

_WHOLE = {"INT32", "INT64", "BOOL"}  # shapes and indices
_TYPES = {"fp32": "FLOAT", "fp16": "HALF", "bf16": "BF16", "int8": "FLOAT", "mixed": "HALF"}
_INSPECTED = ("DataType", "Datatype", "Format/Datatype", "Format/DataType")
_NAMES = {"fp32": {"float", "fp32"}, "fp16": {"half", "fp16"}, "bf16": {"bf16", "bfloat16"}}
_NAMES |= {"int8": {"int8"}}
_MARK = b"tfx-sha256:"
_TAIL_BYTES = len(_MARK) + 64
_LAYERS = {"CONVOLUTION": "Conv", "DECONVOLUTION": "ConvTranspose", "MATRIX_MULTIPLY": "MatMul"}


@dataclass(frozen=True)
class Order:
    """What is to be built.

    Attributes:
        graph: the ONNX model, serialized.
        name: what it is called in messages.
        precision: what its layers compute in.
        plan: modules that its precision plan keeps in float32.
        shapes: of each input by its name: smallest, best and largest.
        capability: compute capability to build for, such as ``8.9``; None for the library's own choice.
        workspace_mb: most GPU memory that one layer may take for itself; None for the library's own choice.
        timing_cache: file that keeps what was measured; None to keep nothing.
    """

    graph: bytes
    name: str
    precision: Precision
    plan: tuple[str, ...]
    shapes: Mapping[str, tuple[Shape, Shape, Shape]]
    capability: str | None = None
    workspace_mb: int | None = None
    timing_cache: Path | None = None


def build(library: Any, order: Order, progress: BuildProgress = lambda phase, done, steps: None) -> Any:
    """Parse, check and build.

    Returns:
        The engine, as a buffer.

    Raises:
        ExportError: the graph cannot be parsed or built, or is not of its precision.
        UsageError: the timing cache is damaged or foreign.
        KeyboardInterrupt: by Ctrl-C; SIGTERM, SIGHUP and SIGQUIT do what they do elsewhere.
    """
    log = library_logger(library)
    log.errors.clear()
    builder = library.Builder(log)
    network = builder.create_network(1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = library.OnnxParser(network, log)
    if not parser.parse(order.graph):
        errors = [_parser_error(parser.get_error(index)) for index in range(parser.num_errors)]
        raise ExportError(f"{order.name} is not accepted by {library.__name__}: {'; '.join(errors)}")
    check_types(network, order.name, order.precision, order.plan)
    profile = builder.create_optimization_profile()
    for name, shapes in order.shapes.items():
        profile.set_shape(name, *shapes)
    config = builder.create_builder_config()
    # On by default, and it rounds factors to 10 bits on Ampere and later: not what fp32 means here.
    config.clear_flag(library.BuilderFlag.TF32)
    allocation = getattr(library.BuilderFlag, "REQUIRE_USER_ALLOCATION", None)
    if allocation is not None:  # or TensorRT-RTX may allocate while it runs, which no CUDA graph can record
        config.set_flag(allocation)
    # Or an engine tells the names of its layers only, and nobody can see what they compute in.
    config.profiling_verbosity = library.ProfilingVerbosity.DETAILED
    if order.workspace_mb is not None:
        config.set_memory_pool_limit(library.MemoryPoolType.WORKSPACE, order.workspace_mb << 20)
    if order.capability is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(capabilities(library)[order.capability], 0)
    if order.timing_cache is not None:
        _load_timings(config, order.timing_cache)
    added = config.add_optimization_profile(profile) >= 0
    # The builder calls back from C++, where the exception that a signal raises in Python would be lost.
    with held_back() as stopped:
        config.progress_monitor = _monitor(library, progress, stopped)
        plan = builder.build_serialized_network(network, config) if added else None
    if plan is None:
        raise ExportError(
            f"{library.__name__} {library.__version__} built no engine from {order.name}: "
            f"{errors_of(library)}"
        )
    if order.timing_cache is not None:
        _store_timings(config, order.timing_cache)
    return plan


def capabilities(library: Any) -> dict[str, Any]:
    """Compute capabilities that TensorRT-RTX can be told to build for: ``8.9`` and its member."""
    members = library.ComputeCapability.__members__.items()
    numbers = {name.removeprefix("SM"): member for name, member in members if name.startswith("SM")}
    return {f"{number[:-1]}.{number[-1]}": member for number, member in numbers.items()}


def check_types(network: Any, name: str, precision: Precision, plan: Sequence[str]) -> None:
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
    quantized = 0
    lacks = FULL.get(precision, frozenset())
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        wanted = {low, "FLOAT", *_WHOLE}
        if precision in QUANTIZED and layer.type.name in ("QUANTIZE", "CONSTANT"):
            wanted |= {"INT8"}
            quantized += layer.type.name == "QUANTIZE"
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
    if precision in QUANTIZED and not quantized:
        raise ExportError(f"{name} is recorded as {precision}, nothing in it is quantized: export it again")


def inspect_types(library: Any, plan: Any, name: str, precision: Precision) -> str:
    """See that a built engine computes in the precision that was asked for; it takes a GPU that can load it.

    Args:
        library: what built it.
        plan: the engine, serialized.
        name: of the graph's file.
        precision: of the graph.

    Returns:
        What was found, in a line.

    Raises:
        ExportError: no layer of the engine takes or gives that precision.
    """
    log = library_logger(library)
    log.errors.clear()
    engine = library.Runtime(log).deserialize_cuda_engine(plan)
    if engine is None:
        return f"the engine cannot be loaded here, its types were not inspected: {errors_of(library)}"
    inspector = engine.create_engine_inspector()
    try:
        told = json.loads(inspector.get_engine_information(library.LayerInformationFormat.JSON))
    except ValueError:  # a good engine is not lost because its inspector writes something else
        told = {}
    layers = [_types_of(layer) for layer in told.get("Layers", ())]
    if not any(layers):
        return f"{library.__name__} does not tell the types of the engine's {len(layers)} layers"
    wanted = "int8" if precision in QUANTIZED else precision
    count = sum(wanted in types for types in layers)
    if not count:
        found = ", ".join(sorted(set().union(*layers)))
        raise ExportError(
            f"the engine of {name} computes in {found}, asked for is {wanted}: nothing was kept; "
            f"try another version of {library.__name__}"
        )
    return f"{count} of the engine's {len(layers)} layers compute in {wanted}"


def _types_of(layer: Any) -> set[str]:
    """Types of what a layer takes and gives, as an engine's inspector tells them.

    TensorRT 10 has them in one field with the layout (``Row major linear FP16 format``), 11 in one of their
    own (``Half``). A layer that is a string is of an engine that keeps names only.
    """
    if isinstance(layer, str):
        return set()
    ends = [end for side in ("Inputs", "Outputs") for end in layer.get(side, ()) if isinstance(end, dict)]
    texts = [str(text) for end in ends for key, text in end.items() if key in _INSPECTED]
    words = {word for text in texts for word in text.lower().split()}
    return {precision for precision, names in _NAMES.items() if words & names}


def _monitor(library: Any, progress: BuildProgress, stopped: Sequence[int]) -> Any:
    """An ``IProgressMonitor`` that tells ``progress``, and ends the build once a signal has come."""

    class Monitor(library.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            library.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.steps[phase] = steps
            progress(phase, 0, steps)

        def step_complete(self, phase: str, step: int) -> bool:
            progress(phase, step + 1, self.steps.get(phase, 0))
            return not stopped

        def phase_finish(self, phase: str) -> None:
            self.steps.pop(phase, None)

    return Monitor()


def _load_timings(config: Any, path: Path) -> None:
    """Give a build what earlier ones measured; a place that cannot be written is said before the work."""
    try:
        known = _timings(path)
    except OSError as error:
        raise UsageError(
            f"timing cache {path} cannot be read ({error.strerror}): choose another place"
        ) from error
    if not os.access(path.parent, os.W_OK | os.X_OK):
        why = "no permission" if path.parent.is_dir() else "no such directory"
        raise UsageError(f"timing cache {path} cannot be written ({why}): choose another place")
    cache = config.create_timing_cache(known)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        raise UsageError(
            f"timing cache {path} is damaged, or of another GPU or version: choose another file, or remove it"
        )


def _store_timings(config: Any, path: Path) -> None:
    """Add what was measured to the file, and keep what other processes added meanwhile."""
    with locked(path.parent):
        cache = config.get_timing_cache()
        if known := _timings(path):
            cache.combine(config.create_timing_cache(known), ignore_mismatch=False)
        content = bytes(cache.serialize())
        with atomic.writing(path, named=True) as stream:
            stream.write(content + _MARK + hashlib.sha256(content).hexdigest().encode())


def _timings(path: Path) -> bytes:
    """What a file of timings holds, nothing where there is none; its SHA-256 stands at its end.

    Raises:
        UsageError: it is damaged, or another program wrote it.
        OSError: it cannot be read.
    """
    try:
        whole = path.read_bytes()
    except FileNotFoundError:
        return b""
    content, mark, digest = whole[:-_TAIL_BYTES], whole[-_TAIL_BYTES:-64], whole[-64:]
    if whole and (mark != _MARK or digest != hashlib.sha256(content).hexdigest().encode()):
        raise UsageError(
            f"timing cache {path} is damaged, or not of tfx: its own SHA-256 does not match or is missing; "
            "choose another file, or remove it"
        )
    return content


def _parser_error(error: Any) -> str:
    where = f" (node {error.node_name()}, {error.node_operator()})" if error.node_name() else ""
    return " ".join(str(error.desc()).split()) + where
