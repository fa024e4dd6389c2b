"""TensorRT engines from a bundle's ONNX graph, by TensorRT or TensorRT-RTX.

    model.onnx (checked against its hash) -> parser -> types checked -> builder -> engines/<key>.engine
    model.safetensors -> eager network in float32 -> answer to the self-test    -> engines/<key>.npy
    graph, precision, batches, library, target    -> hashed to the key          -> engines/<key>.json

If the bundle holds the transform as graphs (``tfx export --transform``), these two are built along with it,
for the same batches, and answered for by the host's transform.

The two libraries share the part of their API that is used here. TensorRT-RTX builds without a GPU, for every
GPU that it supports or for those of one compute capability; TensorRT builds on, and only for, the GPU that
will run the engine. Since TensorRT 11 both are strongly typed: the precision of an engine is that of the
graph, no flag changes it, so the graph's types are checked before it is built.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tfswa.export.artifact import bundle_of
from tfswa.export.builder import BuildProgress, Order, build, capabilities, inspect_types
from tfswa.export.plan import Precision
from tfswa.export.transform import transform_answer
from tfswa.runtime.backends.engines import (
    ANSWER,
    CAPABILITY,
    ENGINE,
    KEY,
    MODULES,
    PORTABLE,
    TRANSFORM,
    answer_of,
    probe,
    samples,
)
from tfswa.runtime.backends.torchscript import run_torch
from tfswa.runtime.errors import BackendUnavailable, NonFiniteError, UsageError
from tfswa.runtime.files import atomic
from tfswa.runtime.files.hashes import sha256_of_json
from tfswa.runtime.files.locks import locked
from tfswa.runtime.files.own_folders import check_own
from tfswa.runtime.model import trust
from tfswa.runtime.model.bundle import Bundle, writable
from tfswa.runtime.model.opening import Model
from tfswa.runtime.model.spec import DECODE, ENCODE, ModelSpec, Shapes
from tfswa.train.published import source_network

Flavor = Literal["auto", "rtx", "tensorrt"]

_INSTALL = {
    "rtx": "pip install 'tfswa[trt-rtx]'",
    "tensorrt": "pip install tensorrt, or use --flavor rtx",
}
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
        transforms: paths of the engines of the transform and its inverse that go with it; or none.
        seconds: of the build, or of the look-up.
    """

    bundle: Path
    file: Path
    bytes: int
    key: str
    details: Mapping[str, Any]
    cached: bool
    transforms: Sequence[Path]
    seconds: float


@dataclass(frozen=True)
class _Part:
    """A graph that is built, and all that is to be known of it."""

    graph: str  # its file
    sha256: str
    kind: str  # of its engine in the manifest
    precision: Precision
    takes: Shapes
    answer: Callable[[], NDArray[np.float32]]


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
    progress: BuildProgress = lambda phase, done, steps: None,
) -> Engine:
    """Build an engine from a bundle's ONNX graph, or find the one that was built before.

    And from the graphs of the transform, if the bundle holds them and they fit to the network's.

    One process builds in a bundle at a time; one that waited finds what the other one built.

    Args:
        model: a bundle that holds an ONNX artifact in the precision.
        options: what to build.
        force: build even if the bundle holds the engine.
        report: told in one line that a build begins; not called where the engine is there already.
        progress: told of each phase of the build, steps done and steps in all.

    Raises:
        UsageError: options out of order, or the model is an exported file.
        BackendUnavailable: the library, its GPU, or the ONNX artifact is missing.
        BundleError: the ONNX artifact is damaged.
        ExportError: the graph cannot be parsed or built, or is not of its precision; or, where a GPU is to
            inspect it, the engine is not.
        NonFiniteError: the eager network gives NaN or Inf for the self-test.
    """
    start = time.perf_counter()
    _check_batch(options.batch)
    bundle = bundle_of(model, "build-engine")
    parts = _parts(model, bundle, options.precision)
    flavor, library = _library(options.flavor)
    _check_timing_cache(options.timing_cache, bundle, flavor)
    made_for = _target(library, flavor, options.capability)
    details = [_details(part, flavor, str(library.__version__), options, made_for) for part in parts]
    keys = [sha256_of_json(one)[:16] for one in details]
    targets = [f"engines/{key}.engine" for key in keys]
    missing = [target for target in targets if force or not _holds(bundle, target)]
    if missing:
        with _turn(bundle, report):
            fresh = Bundle.open(bundle.path)  # another process may have built some meanwhile
            missing = [target for target in targets if force or not _holds(fresh, target)]
            if not missing:
                bundle = fresh
            else:
                report(f"building with {library.__name__} {library.__version__}: 10 s or so for 1M weights")
            for part, target, one in zip(parts, targets, details, strict=True):
                if target in missing:
                    plan = build(library, _order(model, part, options, made_for), progress)
                    if _gpu() is not None:
                        report(inspect_types(library, plan, part.graph, part.precision))
                    _add(bundle, target, part, plan, one)
    file, *transforms = (bundle.file(target) for target in targets)
    size, seconds = file.stat().st_size, time.perf_counter() - start
    return Engine(bundle.home, file, size, keys[0], details[0], not missing, transforms, seconds)


def _parts(model: Model, bundle: Bundle, precision: Precision) -> list[_Part]:
    """The network, then the transform and its inverse where they are graphs and the network takes float32."""
    spec = model.spec
    name, digest = model.artifact("onnx", precision)
    parts = [_Part(name, digest, ENGINE, precision, spec.takes, lambda: answer(model))]
    if bundle.holds(ENCODE, DECODE) and bundle.files[name].details.get("io") != "fp16":
        for graph, (takes, _) in spec.transforms.items():
            right = partial(_transform_samples, spec, graph)
            parts.append(_Part(graph, bundle.files[graph].sha256, TRANSFORM, "fp32", takes, right))
    return parts


def _details(
    part: _Part, flavor: str, version: str, options: BuildOptions, target: str
) -> dict[str, str | list[int]]:
    """Everything that tells an engine from another, see ``Engine``."""
    return {
        "onnx_sha256": part.sha256,
        "flavor": flavor,
        "version": version,
        "precision": part.precision,
        "batch": list(options.batch),
        "target": target,
    }


def _transform_samples(spec: ModelSpec, graph: str) -> NDArray[np.float32]:
    """What an engine of a transform must give for ``quiet_noise``: samples of the host's."""
    return samples(transform_answer(spec, graph))


def _check_batch(sizes: tuple[int, int, int]) -> None:
    if not 1 <= sizes[0] <= sizes[1] <= sizes[2]:
        given = ",".join(map(str, sizes))
        raise UsageError(f"batch {given} is not MIN <= OPT <= MAX, each 1 or more: put it in order")


def answer(model: Model) -> NDArray[np.float32]:
    """What a bundle's engines must give for ``probe``: samples of the eager network's output, float32.

    Raises:
        NonFiniteError: the network itself gives NaN or Inf.
    """
    import torch

    spec = model.spec
    found = run_torch(source_network(model), spec, probe(spec), torch.device("cpu"))
    if not all(np.isfinite(value).all() for value in found.values()):
        raise NonFiniteError(
            f"the eager network of {model.name} gives NaN or Inf for the self-test: train it again"
        )
    return samples({name: value[0] for name, value in found.items()})


def _holds(bundle: Bundle, engine: str) -> bool:
    """Whether an engine is there with its answer; without one it could not be run."""
    return bundle.holds(engine, answer_of(engine))


def _add(bundle: Bundle, engine: str, part: _Part, plan: Any, details: Mapping[str, Any]) -> None:
    """Add an engine, its answer and its key; the engine last, so that it is never seen without them."""
    right = part.answer()
    about = {"onnx_sha256": part.sha256}  # a copy of the bundle takes all along, or nothing
    text = json.dumps(dict(details), indent=1, sort_keys=True) + "\n"
    bundle.add(engine.removesuffix(".engine") + ".json", text.encode(), kind=KEY, details=about)
    bundle.add(answer_of(engine), _array_writer(right), kind=ANSWER, details=about)
    trust.made_here(hashlib.sha256(plan).hexdigest())
    bundle.add(engine, plan, kind=part.kind, precision=part.precision, details=details)


def _check_timing_cache(path: Path | None, bundle: Bundle, flavor: str) -> None:
    if path is None:
        return
    if flavor == "rtx":
        raise UsageError(
            f"flavor rtx measures no kernels while it builds, {path} would stay empty: "
            "leave --timing-cache out"
        )
    if path.resolve().is_relative_to(bundle.home.resolve()):
        raise UsageError(
            f"timing cache {path} is inside the bundle, which holds only what its manifest lists: "
            "choose a place outside"
        )


@contextmanager
def _turn(bundle: Bundle, report: Callable[[str], None]) -> Iterator[None]:
    """Wait until no other process builds in this bundle, and keep others waiting."""
    place = bundle.home / "engines"
    with ExitStack() as stack:
        with writable(place):
            if bundle.sealed:
                check_own(place)
            stack.enter_context(atomic.folder(place))
            stack.enter_context(
                locked(place, lambda: report(f"waiting for another process that builds in {place}"))
            )
        yield


def _library(flavor: Flavor) -> tuple[str, Any]:
    """Import the library of a flavor."""
    if flavor == "auto":
        import torch

        if torch.cuda.is_available():
            try:
                return "tensorrt", importlib.import_module(MODULES["tensorrt"])
            except (ImportError, OSError) as error:
                logger.info("tensorrt cannot be imported (%s): taking tensorrt_rtx", error)
        flavor = "rtx"
    try:
        return flavor, importlib.import_module(MODULES[flavor])
    except (ImportError, OSError) as error:  # OSError: the package is there, a library of it is not
        raise BackendUnavailable(
            f"flavor {flavor} needs {MODULES[flavor]} ({error}): {_INSTALL[flavor]}"
        ) from error


def _target(library: Any, flavor: str, capability: str | None) -> str:
    """What an engine is for: a GPU by name, a compute capability, or all that the library supports."""
    own = _gpu()
    if flavor == "tensorrt":
        import torch

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
    known = capabilities(library)
    if capability is None:
        return f"{CAPABILITY}{own}" if own in known else PORTABLE
    if capability not in known:
        raise UsageError(
            f"{library.__name__} {library.__version__} builds for compute capability {', '.join(known)}, "
            f"asked for is {capability}: choose one, or leave --compute-capability out for all of them"
        )
    return f"{CAPABILITY}{capability}"


def _gpu() -> str | None:
    """Compute capability of the GPU here."""
    import torch

    here = torch.cuda.is_available()
    return ".".join(map(str, torch.cuda.get_device_capability())) if here else None


def _order(model: Model, part: _Part, options: BuildOptions, target: str) -> Order:
    assert model.bundle is not None
    smallest, best, largest = options.batch
    return Order(
        graph=model.file(part.graph).read_bytes(),
        name=part.graph,
        precision=part.precision,
        plan=tuple(model.bundle.files[part.graph].details.get("plan", ())),
        shapes={
            name: ((smallest, *shape), (best, *shape), (largest, *shape))
            for name, shape in part.takes.items()
        },
        capability=target.removeprefix(CAPABILITY) if target.startswith(CAPABILITY) else None,
        workspace_mb=options.workspace_mb,
        timing_cache=options.timing_cache,
    )


def _array_writer(array: NDArray[Any]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with path.open("wb") as stream:  # given a path, numpy would add an ending
            np.save(stream, array, allow_pickle=False)

    return write
