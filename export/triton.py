"""A model repository for NVIDIA's Triton server: a graph or an engine, and how it is to be served.

    REPOSITORY/vocals/config.pbtxt     names, types and shapes, batching, warm-up, and what network it is
    REPOSITORY/vocals/1/model.onnx     byte for byte the bundle's; of an engine model.plan

``runtime/backends/triton.py`` reads from the configuration what network it is. State, of a network that has
any, goes in and comes out like all else: the server keeps nothing between two calls.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx

from tfswa.export.onnx import export_onnx
from tfswa.runtime.backends.engines import ENGINE
from tfswa.runtime.backends.triton import (
    ARTIFACT,
    PRECISION,
    SHA256,
    SPEC,
    VERSION,
    served_name,
    spec_digest,
)
from tfswa.runtime.errors import BackendUnavailable, BundleError, OutputExists, UsageError
from tfswa.runtime.files.atomic import new_folder
from tfswa.runtime.files.checks import check_folder
from tfswa.runtime.limits import MOST_BATCH, check_number
from tfswa.runtime.model.bundle import writable
from tfswa.runtime.model.opening import Model
from tfswa.runtime.model.spec import Shapes

CONFIG = "config.pbtxt"
MAX_BATCH = 8
QUEUE_DELAY_MS = 2.0
PRECISIONS = ("fp32", "fp16")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_TYPES = {onnx.TensorProto.FLOAT: "TYPE_FP32", onnx.TensorProto.FLOAT16: "TYPE_FP16"}
# platform, backend and file of an artifact, as Triton calls them
_SERVED_AS = {
    "onnx": ("onnxruntime_onnx", "onnxruntime", "model.onnx"),
    ENGINE: ("tensorrt_plan", "tensorrt", "model.plan"),
}


class _Word(str):
    """Text that stands without quotes in a configuration: a name of an enumeration."""


@dataclass(frozen=True)
class Serving:
    """What a user may choose.

    Attributes:
        precision: of the artifact, ``fp32`` or ``fp16``.
        engine: serve the TensorRT engine in place of the ONNX graph.
        name: of the model on the server; None: the bundle's, with ``-fp16`` behind it in that precision.
        device: ``cpu``, ``cuda`` or ``cuda:N``; None: ``cpu``, of an engine ``cuda``.
        max_batch: most chunks that the server puts into one call; None: 8, of an engine its own.
        queue_delay_ms: how long a chunk waits for others to share a call with, in milliseconds.

    Raises:
        UsageError: a value that Triton would not take.
    """

    precision: str = "fp32"
    engine: bool = False
    name: str | None = None
    device: str | None = None
    max_batch: int | None = None
    queue_delay_ms: float = QUEUE_DELAY_MS

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UsageError(
                f"--format triton serves {' and '.join(PRECISIONS)}, asked for is {self.precision}: use one "
                "of these"
            )
        if self.name is not None and not _NAME.fullmatch(self.name):
            raise UsageError(
                f"{self.name!r} cannot be a model's name on a server: use at most 128 of A-Z, a-z, 0-9, _, - "
                "and ., no - or . in front"
            )
        if self.device is not None and not re.fullmatch(r"cpu|cuda(:\d{1,3})?", self.device):
            raise UsageError(f"unknown device {self.device!r}: use cpu, cuda or cuda:N")
        if self.engine and self.device == "cpu":
            raise UsageError("device cpu asked for, engines run on GPUs: use --device cuda")
        if self.max_batch is not None:
            check_number("max-batch", self.max_batch, MOST_BATCH)
        if not 0 <= self.queue_delay_ms <= 10_000:
            raise UsageError(f"queue-delay {self.queue_delay_ms:g} ms must be 0 to 10000")


@dataclass(frozen=True)
class Served:
    """A model in a repository.

    Attributes:
        path: its folder.
        file: the artifact in it.
        name: of the model.
        artifact: name of the artifact in the bundle.
        backend: ``onnxruntime`` or ``tensorrt``, what Triton runs it by.
        max_batch: most chunks of one call.
        made: whether the graph was exported into the bundle first, as it held none.
        seconds: of all that.
    """

    path: Path
    file: Path
    name: str
    artifact: str
    backend: str
    max_batch: int
    made: bool
    seconds: float


@dataclass(frozen=True)
class _Chosen:
    """The artifact that is served: its types by name, and its batches, of an engine."""

    name: str
    sha256: str
    kind: str  # a key of _SERVED_AS
    types: Mapping[str, str]
    best: int | None = None
    largest: int | None = None


def export_triton(model: Model, repository: Path, serving: Serving, *, force: bool = False) -> Served:
    """Write a model into a Triton model repository, whole or not at all.

    A graph that the bundle lacks is exported into it first.

    Args:
        model: a bundle, or an exported ONNX file.
        repository: the folder of all models of a server; made where it is missing.
        serving: what to serve, and how.
        force: replace a model of that name that tfx wrote.

    Raises:
        OutputExists: a model of that name is there and ``force`` is False, or tfx did not write it.
        UsageError: the repository cannot be written, or a batch is larger than the engine's.
        BackendUnavailable: no such artifact, or one that Triton cannot serve.
        BundleError: the artifact is damaged.
        ExportError: the graph had to be made, and differs from the network.
    """
    start = time.perf_counter()
    name = serving.name or served_name(model, serving.precision)
    place = repository / name
    check_folder(repository)
    _check_place(place, force)
    made = not serving.engine and _make_graph(model, serving.precision)
    chosen = _engine(model, serving.precision) if serving.engine else _graph(model, serving.precision)
    batch = serving.max_batch or chosen.largest or MAX_BATCH
    if chosen.largest is not None and batch > chosen.largest:
        raise UsageError(
            f"max-batch {batch} is more than {chosen.name} takes, {chosen.largest}: lower it, or build "
            "the engine anew"
        )
    _, backend, file = _SERVED_AS[chosen.kind]
    source = model.file(chosen.name)
    with writable(place), new_folder(place, force=force, named=True) as work:
        (work / "1").mkdir()
        shutil.copyfile(source, work / "1" / file)
        text = config_text(_config(model, name, chosen, serving, batch))
        (work / CONFIG).write_text(text, encoding="ascii")
        _check_place(place, force)  # it may have come to be meanwhile
    seconds = time.perf_counter() - start
    return Served(place, place / "1" / file, name, chosen.name, backend, batch, made, seconds)


def config_text(fields: Mapping[str, Any], indent: str = "") -> str:
    """Protobuf's text format: a mapping is a message, a list is a field as often as it has items."""
    lines = []
    for key, values in fields.items():
        for value in values if isinstance(values, list | tuple) else (values,):
            if isinstance(value, Mapping):
                lines.append(f"{indent}{key} {{\n{config_text(value, indent + '  ')}{indent}}}\n")
            else:  # of what is written here, JSON's numbers, true, false and quoted text are the format's
                lines.append(f"{indent}{key}: {value if isinstance(value, _Word) else json.dumps(value)}\n")
    return "".join(lines)


def _make_graph(model: Model, precision: Any) -> bool:
    """Export the graph into its bundle, if there is none; return whether it was made."""
    if model.bundle is None or model.bundle.find("onnx", precision) is not None:
        return False
    export_onnx(model, precision=precision)
    return True


def _graph(model: Model, precision: str) -> _Chosen:
    name, sha256 = model.artifact("onnx", precision)
    return _Chosen(name, sha256, "onnx", _types(model, name))


def _types(model: Model, name: str) -> dict[str, str]:
    """Triton's types of all inputs and outputs of a graph, whose batch must be free."""
    graph = onnx.load(model.file(name), load_external_data=False).graph
    found = {}
    for end in (*graph.input, *graph.output):
        tensor = end.type.tensor_type
        if (
            tensor.elem_type not in _TYPES
            or not tensor.shape.dim
            or tensor.shape.dim[0].HasField("dim_value")
        ):
            raise BackendUnavailable(
                f"{name} of {model.name} has {end.name} of another type than float32 or float16, or of a "
                "fixed batch: export it again with `tfx export --force`"
            )
        found[end.name] = _TYPES[tensor.elem_type]
    return found


def _engine(model: Model, precision: str) -> _Chosen:
    """The classic TensorRT engine of a bundle with the largest batch."""
    build = f"tfx build-engine {model.name} --flavor tensorrt --precision {precision}"
    if model.bundle is None:
        raise BackendUnavailable(f"{model.name} is an exported file, engines are in bundles: name the bundle")
    files = {
        name: entry
        for name, entry in model.bundle.files.items()
        if entry.kind == ENGINE and entry.precision == precision
    }
    classic = {name: entry for name, entry in files.items() if entry.details.get("flavor") == "tensorrt"}
    if not classic:
        other = next(iter(files), None)
        why = f"{other} is of TensorRT-RTX, which Triton has no backend for" if other else "holds none"
        raise BackendUnavailable(f"no TensorRT engine of {model.name} in {precision}, {why}: run `{build}`")
    graph, sha256 = model.artifact("onnx", precision)
    fitting = {name: entry for name, entry in classic.items() if entry.details.get("onnx_sha256") == sha256}
    if not fitting:
        name, entry = next(iter(classic.items()))
        of = str(entry.details.get("onnx_sha256"))[:12]
        raise BackendUnavailable(
            f"{name} was built from other weights (SHA-256 {of}, {graph} has {sha256[:12]}): run `{build}`"
        )
    batches = {name: _batches(name, entry.details) for name, entry in fitting.items()}
    name = max(batches, key=lambda name: batches[name][-1])
    smallest, best, largest = batches[name]
    if smallest != 1:
        raise BackendUnavailable(
            f"{name} takes batches of {smallest} to {largest}, Triton sends any from 1: run "
            f"`{build} --batch 1,{best},{largest}`"
        )
    return _Chosen(name, fitting[name].sha256, ENGINE, _types(model, graph), best, largest)


def _batches(name: str, details: Mapping[str, Any]) -> tuple[int, int, int]:
    """Smallest, best and largest batch of an engine, as the manifest has them."""
    batch = details.get("batch")
    if not isinstance(batch, list) or len(batch) != 3 or not all(type(size) is int for size in batch):
        raise BundleError(f"the manifest says of {name} that it takes batches of {batch!r}: build it again")
    return batch[0], batch[1], batch[2]


def _config(model: Model, name: str, chosen: _Chosen, serving: Serving, batch: int) -> dict[str, Any]:
    """The configuration, field by field; see Triton's ``model_config.proto``."""
    platform, backend, file = _SERVED_AS[chosen.kind]
    takes, gives = model.spec.takes, model.spec.gives
    device = serving.device or ("cuda" if serving.engine else "cpu")
    fields: dict[str, Any] = {
        "name": name,
        "platform": platform,
        "backend": backend,
        "default_model_filename": file,
        "max_batch_size": batch,
        "input": list(_ends(takes, chosen.types)),
        "output": list(_ends(gives, chosen.types)),
        "instance_group": _instances(device),
    }
    if batch > 1:
        fields["dynamic_batching"] = {
            "preferred_batch_size": _preferred(batch, chosen.best),
            "max_queue_delay_microseconds": round(serving.queue_delay_ms * 1000),
        }
    if chosen.kind == "onnx" and (settings := _settings(serving.precision, device)):
        fields["optimization"] = settings
    fields["model_warmup"] = [
        {"name": f"zeros {size}", "batch_size": size, "inputs": list(_zeros(takes, chosen.types))}
        for size in sorted({1, batch})
    ]
    said = {
        SPEC: spec_digest(model.spec),
        ARTIFACT: chosen.name,
        SHA256: chosen.sha256,
        PRECISION: serving.precision,
        VERSION: version("tfswa"),
    }
    fields["parameters"] = [{"key": key, "value": {"string_value": value}} for key, value in said.items()]
    return fields


def _settings(precision: str, device: str) -> dict[str, Any]:
    """What ``backends/ort.py`` sets too, and why: of ONNX Runtime's passes, and of its kernels for CUDA."""
    if device == "cpu":
        return {"graph": {"level": 1}} if precision == "fp16" else {}  # 1: no pass to blocked layouts
    cuda = {"name": "cuda", "parameters": {"key": "use_tf32", "value": "0"}}
    return {"execution_accelerators": {"gpu_execution_accelerator": cuda}}


def _ends(shapes: Shapes, types: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Inputs or outputs, without the batch, as Triton has them of a model with ``max_batch_size``."""
    for name, shape in shapes.items():
        yield {"name": name, "data_type": _Word(types[name]), "dims": list(shape)}


def _zeros(takes: Shapes, types: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    for name, shape in takes.items():
        yield {
            "key": name,
            "value": {"data_type": _Word(types[name]), "dims": list(shape), "zero_data": True},
        }


def _instances(device: str) -> dict[str, Any]:
    kind, _, index = device.partition(":")
    if kind == "cpu":
        return {"kind": _Word("KIND_CPU"), "count": 1}
    return {"kind": _Word("KIND_GPU"), "count": 1, "gpus": [int(index or 0)]}


def _preferred(batch: int, best: int | None) -> list[int]:
    """Sizes of calls that wait for no more chunks: powers of two, or the engine's best; and the largest."""
    powers = {1 << power for power in range(1, batch.bit_length()) if 1 << power <= batch}
    return sorted({size for size in (powers if best is None else {best}) | {batch} if size > 1})


def _check_place(place: Path, force: bool) -> None:
    """Refuse to replace a model, unless ``force``, and what tfx did not write in any case."""
    if not place.exists():
        return
    if not force:
        raise OutputExists(f"{place} is there already: replace it with --force, or choose another --name")
    try:
        ours = f'key: "{SPEC}"' in (place / CONFIG).read_text(encoding="utf-8", errors="replace")
    except OSError:
        ours = False
    if not ours:
        raise OutputExists(
            f"{place} is there and was not written by tfx: not replaced, choose another --name"
        )
