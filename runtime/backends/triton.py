"""The ``triton`` backend: a network that NVIDIA's Triton server runs, over gRPC.

The server runs what ``tfx export --format triton`` wrote. Its configuration says of which network and which
file that is; a server that serves another one is refused, when the session opens and after every call. The
protocol is version 2 of KServe's; see ``triton_server.py``.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.backends import BackendOptions
from tfswa.runtime.backends.engines import ENGINE
from tfswa.runtime.backends.triton_server import ServerAddress, TritonServer
from tfswa.runtime.errors import BackendUnavailable, UsageError
from tfswa.runtime.files.hashes import sha256_of_json
from tfswa.runtime.model.spec import ModelSpec, Shapes

if TYPE_CHECKING:
    from tfswa.runtime.model.opening import Model

MESSAGE_BYTES = 1 << 30  # of one request or answer; protobuf ends at twice that
IN_FLIGHT = 4  # requests at once, where a batch is split
KINDS: Mapping[str, np.dtype[Any]] = {"FP32": np.dtype("<f4"), "FP16": np.dtype("<f2")}
# Parameters in ``config.pbtxt``: digest of the spec; name, hash and precision of the file; tfx that wrote it.
SPEC, ARTIFACT, SHA256, PRECISION, VERSION = (
    f"tfx.{name}" for name in ("spec", "artifact", "sha256", "precision", "version")
)
Tensors = Mapping[str, NDArray[np.float32]]


def served_name(model: Model, precision: str) -> str:
    """What a model is called on a server unless a user says otherwise: ``vocals``, ``vocals-fp16``."""
    path = Path(model.name) if model.bundle is None else model.bundle.path.resolve()
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", path.stem).lstrip(".-") or "model"
    return name if precision == "fp32" else f"{name}-{precision}"


def spec_digest(spec: ModelSpec) -> str:
    """What a server's configuration says of a spec: its hash, in hexadecimal."""
    return sha256_of_json(spec.to_dict())


class TritonSession:
    """Runs a network on a Triton server; see ``Session``.

    What goes over the network are the tensors of the spec, so that audio leaves this machine: spectra and, of
    some models, samples. Several threads may call it at once. Nothing is tried twice.

    Attributes:
        place: what certificates say in place of ``--device``: they hold for the versions in ``versions``,
            whatever address the server has.

    Raises:
        BackendUnavailable: tritonclient is missing; the address is none; no server answers there; it does not
            serve the model; or what it serves has another spec, file, precision or other tensors.
        UsageError: no such precision.
    """

    name = "triton"
    precisions = ("fp32", "fp16")
    reentrant = True
    place = "triton"
    artifact: tuple[str, str]
    description: str
    versions: Mapping[str, str]

    def __init__(self, model: Model, options: BackendOptions):
        precision = options.precision or "fp32"
        if precision not in self.precisions:
            raise UsageError(
                f"backend triton has no precision {precision!r}: choose {' or '.join(self.precisions)}"
            )
        address = ServerAddress.of(options.device)
        self._server = TritonServer(address)
        try:
            self._open(model, address.model or served_name(model, precision), precision)
        except BaseException:
            self.close()
            raise

    def infer(self, given: Tensors) -> dict[str, NDArray[np.float32]]:
        """What the network takes to what it gives, of any B items; see ``Session``."""
        items = len(next(iter(given.values())))
        out = {name: np.empty((items, *end.shape), np.float32) for name, end in self._gives.items()}
        waiting: deque[tuple[slice, Any]] = deque()
        try:
            for start in range(0, items, self._batch):
                if len(waiting) == IN_FLIGHT:
                    self._receive(*waiting.popleft(), out)
                part = slice(start, min(start + self._batch, items))
                waiting.append((part, self._server.begin("ModelInfer", self._request(given, part))))
            while waiting:
                self._receive(*waiting.popleft(), out)
        finally:
            for _, call in waiting:
                call.cancel()
        # After the call: what came back is of the network that was checked.
        if self._config(self._server.timeout_s)[1] != self._said:
            raise BackendUnavailable(
                f"{self._what} became another model while it was in use: run this again, on that"
            )
        return out

    def close(self) -> None:
        """Leave the server; the model stays loaded there."""
        self._server.close()

    def _open(self, model: Model, name: str, precision: str) -> None:
        server = self._server
        version = server.check_up()
        metadata = server.metadata(name)
        latest = max(metadata.versions, key=_as_number, default="")
        self._named: dict[str, Any] = {"name": name, "version": latest}
        self._what = f"model {name!r} of Triton at {server.target}"
        if not server.ask("ModelReady", **self._named).ready:
            raise BackendUnavailable(f"{self._what} is not ready: see the server's log, and load it there")
        config, self._said = self._config()
        self.artifact = self._checked_artifact(model, precision)
        self._takes = self._ends("takes", metadata.inputs, model.spec.takes)
        self._gives = self._ends("gives", metadata.outputs, model.spec.gives)
        if config.max_batch_size < 1:
            raise BackendUnavailable(
                f"{self._what} has max_batch_size {config.max_batch_size}, 1 or more is needed: "
                f"{_again(model, precision)}"
            )
        item = 4 * max(
            sum(math.prod(end.shape) for end in ends.values()) for ends in (self._takes, self._gives)
        )
        self._batch = max(1, min(config.max_batch_size, MESSAGE_BYTES // item))
        kinds = {type(group).Kind.Name(group.kind) for group in config.instance_group}
        runs = f"{config.backend or config.platform} on {' and '.join(sorted(kinds)) or 'KIND_AUTO'}"
        served = f"{name} {latest}"
        self.versions = {"triton": version, "triton model": served, "triton runs": runs}
        self.description = f"Triton {version} at {server.target}, model {served} by {runs}, {precision}"

    def _config(self, timeout_s: float | None = None) -> tuple[Any, dict[str, str]]:
        """The model's configuration, and what it says of tfx."""
        config = self._server.ask("ModelConfig", timeout_s, **self._named).config
        return config, {
            key: value.string_value for key, value in config.parameters.items() if key.startswith("tfx.")
        }

    def _checked_artifact(self, model: Model, precision: str) -> tuple[str, str]:
        """Name and SHA-256 of the file that the server runs, once it is one of the model's."""
        said = self._said
        if missing := [key for key in (SPEC, SHA256, PRECISION) if key not in said]:
            raise BackendUnavailable(
                f"the configuration of {self._what} lacks {missing[0]}, so that nobody knows what network it "
                f"is: {_again(model, precision)}"
            )
        here = spec_digest(model.spec)
        if said[SPEC] != here:
            raise BackendUnavailable(
                f"{self._what} is of spec {said[SPEC][:12]}, {model.name} has {here[:12]}: name another "
                f"model with --device, or {_again(model, precision)}"
            )
        if said[PRECISION] != precision:
            raise BackendUnavailable(
                f"{self._what} is in {said[PRECISION]}, asked for is {precision}: name another model with "
                f"--device, or use --precision {said[PRECISION]}"
            )
        files = {} if model.bundle is None else model.bundle.files
        for name, entry in files.items():
            if entry.kind in ("onnx", ENGINE) and (entry.sha256, entry.precision) == (
                said[SHA256],
                precision,
            ):
                return name, entry.sha256
        name, sha256 = model.artifact("onnx", precision)
        if sha256 != said[SHA256]:
            raise BackendUnavailable(
                f"{self._what} runs a file with SHA-256 {said[SHA256][:12]}, {name} of {model.name} has "
                f"{sha256[:12]}: {_again(model, precision)}"
            )
        return name, sha256

    def _ends(self, verb: str, found: Any, wanted: Shapes) -> dict[str, _End]:
        """Inputs or outputs by name, if they are the spec's."""
        ends = {}
        for end in found:
            if end.datatype not in KINDS:
                raise BackendUnavailable(
                    f"{self._what} {verb} {end.name} as {end.datatype}, it may be {' or '.join(KINDS)}"
                )
            ends[end.name] = _End(tuple(end.shape[1:]), end.datatype)
        shapes = {name: end.shape for name, end in ends.items()}
        if shapes != dict(wanted):
            raise BackendUnavailable(
                f"{self._what} {verb} {_told(shapes)}, the spec says {_told(wanted)}: export it again"
            )
        return {name: ends[name] for name in wanted}

    def _request(self, given: Tensors, part: slice) -> Any:
        """A request with some items of a batch."""
        messages = self._server.messages
        request = messages.ModelInferRequest(
            model_name=self._named["name"], model_version=self._named["version"]
        )
        for name, end in self._takes.items():
            value = np.ascontiguousarray(given[name][part], KINDS[end.kind])
            request.inputs.add(name=name, datatype=end.kind, shape=value.shape)
            request.raw_input_contents.append(value.tobytes())
        for name in self._gives:
            request.outputs.add(name=name)
        return request

    def _receive(self, part: slice, call: Any, out: dict[str, NDArray[np.float32]]) -> None:
        """Put an answer into its place; it must be what was asked for."""
        answer = self._server.end(call, "ModelInfer")
        if len(answer.outputs) != len(answer.raw_output_contents):
            raise BackendUnavailable(
                f"{self._what} gave {len(answer.raw_output_contents)} tensors for {len(answer.outputs)} "
                "outputs: see the server's log"
            )
        found = {
            end.name: (tuple(end.shape), end.datatype, content)
            for end, content in zip(answer.outputs, answer.raw_output_contents, strict=True)
        }
        for name, end in self._gives.items():
            wanted = (part.stop - part.start, *end.shape)
            shape, kind, content = found.get(name, ((), "nothing", b""))
            size = math.prod(wanted) * KINDS[end.kind].itemsize
            if (shape, kind, len(content)) != (wanted, end.kind, size):
                raise BackendUnavailable(
                    f"{self._what} gave {name} as {kind} {list(shape)} in {len(content)} bytes, the spec "
                    f"says {end.kind} {list(wanted)} in {size}: see the server's log"
                )
            out[name][part] = np.frombuffer(content, KINDS[end.kind]).reshape(wanted)


@dataclass(frozen=True)
class _End:
    """An input or output: its shape without the batch, and its type as Triton names it."""

    shape: tuple[int, ...]
    kind: str


def _told(shapes: Shapes) -> str:
    return ", ".join(f"{name} {['B', *shape]}".replace("'", "") for name, shape in shapes.items())


def _again(model: Model, precision: str) -> str:
    return f"write it with `tfx export {model.name} --format triton --precision {precision} -o REPOSITORY`"


def _as_number(version: str) -> int:
    return int(version) if version.isdecimal() else -1
