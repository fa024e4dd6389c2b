"""TensorRT engines from a bundle's ONNX graph, by TensorRT or TensorRT-RTX.

    model.onnx (checked against its hash) -> parser -> types checked -> builder -> engines/<key>.engine

The two libraries share the part of their API that is used here. TensorRT-RTX builds without a GPU, for every
GPU that it supports; TensorRT builds on, and only for, the GPU that will run the engine. Since TensorRT 11
both are strongly typed: the precision of an engine is that of the graph, no flag changes it.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tfswa.export.artifact import bundle_of
from tfswa.runtime.errors import BackendUnavailable, ExportError, UsageError
from tfswa.runtime.models import Model
from tfswa.runtime.spec import ModelSpec

Flavor = Literal["auto", "rtx", "tensorrt"]
PORTABLE = "portable"  # target of an engine that is not bound to one GPU

_MODULES = {"rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
_INSTALL = {
    "rtx": "pip install 'tfswa[trt-rtx]'",
    "tensorrt": "pip install tensorrt, or use --flavor rtx",
}
_FP32_TYPES = {"FLOAT", "INT32", "INT64", "BOOL"}  # whole numbers are shapes and indices

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


def build_engine(
    model: Model,
    *,
    flavor: Flavor = "auto",
    batch: tuple[int, int, int] = (1, 1, 1),
    force: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> Engine:
    """Build a float32 engine from a bundle's ``model.onnx``, or find the one that was built before.

    Args:
        model: a bundle that holds an ONNX artifact in fp32.
        flavor: ``rtx``, ``tensorrt``, or ``auto``: TensorRT where it and a GPU are there, else RTX.
        batch: smallest, best and largest batch.
        force: build even if the bundle holds the engine.
        report: told in one line that a build begins; not called where the engine is there already.

    Raises:
        UsageError: batches out of order, or the model is an exported file.
        BackendUnavailable: the library, its GPU, or the ONNX artifact is missing.
        BundleError: the ONNX artifact is damaged.
        ExportError: the graph cannot be parsed or built, or is not float32.
    """
    start = time.perf_counter()
    if not 1 <= batch[0] <= batch[1] <= batch[2]:
        sizes = ",".join(map(str, batch))
        raise UsageError(f"batch {sizes} is not MIN <= OPT <= MAX, each 1 or more: put it in order")
    bundle = bundle_of(model, "build-engine")
    name, digest = model.artifact("onnx", "fp32")
    chosen, library = _library(flavor)
    details = {
        "onnx_sha256": digest,
        "flavor": chosen,
        "version": str(library.__version__),
        "precision": "fp32",
        "batch": list(batch),
        "target": PORTABLE if chosen == "rtx" else _gpu(),
    }
    key = hashlib.sha256(json.dumps(details, sort_keys=True).encode()).hexdigest()[:16]
    target = f"engines/{key}.engine"
    cached = target in bundle.files and not force
    if cached:
        file = bundle.file(target)
    else:
        graph = model.file(name)
        report(f"building with {library.__name__} {library.__version__}: 10 s or so for 1M weights")
        plan = _build(library, graph, model.spec, batch)
        file = bundle.add(target, _writer(plan), kind="engine", precision="fp32", details=details)
    return Engine(bundle.home, file, file.stat().st_size, key, details, cached, time.perf_counter() - start)


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


def _gpu() -> str:
    """Name and compute capability of the GPU that TensorRT builds for."""
    import torch

    if not torch.cuda.is_available():
        raise BackendUnavailable(
            "flavor tensorrt builds on the GPU that runs the engine, 0 CUDA devices found: use --flavor rtx"
        )
    major, minor = torch.cuda.get_device_capability()
    return f"{torch.cuda.get_device_name()}, compute capability {major}.{minor}"


def _build(library: Any, onnx: Path, spec: ModelSpec, batch: tuple[int, int, int]) -> Any:
    """Parse, check and build; the engine as a buffer."""
    log = _logger(library)
    log.errors.clear()
    builder = library.Builder(log)
    network = builder.create_network(1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = library.OnnxParser(network, log)
    if not parser.parse(onnx.read_bytes()):
        errors = [_parser_error(parser.get_error(index)) for index in range(parser.num_errors)]
        raise ExportError(f"{onnx.name} is not accepted by {library.__name__}: {'; '.join(errors)}")
    _check_types(network, onnx.name)
    profile = builder.create_optimization_profile()
    profile.set_shape(network.get_input(0).name, *(spec.input_shape(items) for items in batch))
    config = builder.create_builder_config()
    # On by default, and it rounds factors to 10 bits on Ampere and later: not what fp32 means here.
    config.clear_flag(library.BuilderFlag.TF32)
    added = config.add_optimization_profile(profile) >= 0
    plan = builder.build_serialized_network(network, config) if added else None
    if plan is None:
        raise ExportError(
            f"{library.__name__} {library.__version__} built no engine from {onnx.name}: "
            f"{'; '.join(log.errors) or 'no reason given'}"
        )
    return plan


def _check_types(network: Any, name: str) -> None:
    """Refuse to call an engine fp32 that computes in anything else."""
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        for output in range(layer.num_outputs):
            found = layer.get_output(output).dtype.name
            if found not in _FP32_TYPES:
                raise ExportError(
                    f"{name} is recorded as fp32, its layer {layer.name} gives {found}: export it again"
                )


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
