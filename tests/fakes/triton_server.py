"""A small server that speaks Triton's protocol, in the messages of NVIDIA's client, and runs real graphs.

It reads a model repository as Triton does: ``NAME/config.pbtxt`` decides about names, types, shapes, batches,
warm-up and the queue, and ONNX Runtime computes. It shares no code with what it is to test. What a test
wants to go wrong is set on it.

    python triton_server.py REPOSITORY [--hold]     prints its port, and serves until it is killed; or holds
                                                    the first chunk that comes, and says ``begun``
"""

from __future__ import annotations

import os
import sys
import threading
import time
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc
import numpy as np
import onnxruntime
from google.protobuf import text_format
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

KINDS = {
    "TYPE_FP32": ("FP32", np.dtype(np.float32)),
    "TYPE_FP16": ("FP16", np.dtype(np.float16)),
}
LEVELS = {  # as Triton's back end for ONNX Runtime has them
    0: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    -1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
}


def read_config(path: Path) -> Any:
    """A model's configuration; a field that Triton does not know is an error."""
    return text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())


def kind_of(end: Any) -> tuple[str, np.dtype[Any]]:
    """Name and type of an input or output."""
    return KINDS[model_config_pb2.DataType.Name(end.data_type)]


@dataclass
class Waiting:
    """A request in the queue."""

    given: dict[str, NDArray[Any]]
    items: int
    found: futures.Future[dict[str, NDArray[Any]]] = field(default_factory=futures.Future)


class Served:
    """A loaded model: its batches are what its configuration says."""

    def __init__(self, folder: Path):
        self.config = read_config(folder / "config.pbtxt")
        if self.config.name != folder.name or self.config.platform != "onnxruntime_onnx":
            raise ValueError(f"{folder} holds {self.config.name} of {self.config.platform}")
        settings = onnxruntime.SessionOptions()
        settings.graph_optimization_level = LEVELS[self.config.optimization.graph.level]
        settings.intra_op_num_threads = 1
        path = folder / "1" / self.config.default_model_filename
        self.session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        self.runs: list[int] = []  # batch of every call
        self.changed, self.queue, self.closed = threading.Condition(), list[Waiting](), False
        self._check_ends()
        for warmup in self.config.model_warmup:
            self.run(
                {
                    name: np.zeros((warmup.batch_size, *end.dims), kind_of(end)[1])
                    for name, end in warmup.inputs.items()
                }
            )
        self.warmed, self.runs = self.runs, []
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def _check_ends(self) -> None:
        """As Triton does when it loads a model: the graph must be as the configuration says."""
        for ends, graph in (
            (self.config.input, self.session.get_inputs()),
            (self.config.output, self.session.get_outputs()),
        ):
            said = {end.name: (list(end.dims), kind_of(end)[0]) for end in ends}
            names = {"tensor(float)": "FP32", "tensor(float16)": "FP16"}
            found = {end.name: (list(end.shape[1:]), names[end.type]) for end in graph}
            if said != found or any(isinstance(end.shape[0], int) for end in graph):
                raise ValueError(f"the configuration says {said}, the graph {found}")

    def run(self, given: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self.runs.append(len(next(iter(given.values()))))
        names = [end.name for end in self.config.output]
        return dict(zip(names, self.session.run(names, given), strict=True))

    def ask(self, given: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Wait in the queue for what the model gives."""
        one = Waiting(given, len(next(iter(given.values()))))
        with self.changed:
            self.queue.append(one)
            self.changed.notify_all()
        return one.found.result()

    def _work(self) -> None:
        while batch := self._taken():
            joined = {name: np.concatenate([one.given[name] for one in batch]) for name in batch[0].given}
            try:
                found = self.run(joined)
            except Exception as error:
                for one in batch:
                    one.found.set_exception(error)
                continue
            at = 0
            for one in batch:
                one.found.set_result({name: value[at : at + one.items] for name, value in found.items()})
                at += one.items

    def _taken(self) -> list[Waiting]:
        """Requests that share a call: of a preferred size, or all that came in time; empty at the end."""
        queue = self.config.dynamic_batching
        with self.changed:
            self.changed.wait_for(lambda: self.queue or self.closed)
            until = time.monotonic() + queue.max_queue_delay_microseconds / 1e6
            most = self.config.max_batch_size if self.config.HasField("dynamic_batching") else 0
            while True:
                taken: list[Waiting] = []
                for one in self.queue:
                    if taken and sum(other.items for other in taken) + one.items > most:
                        break
                    taken.append(one)
                left = until - time.monotonic()
                items = sum(one.items for one in taken)
                full = items >= most or items in queue.preferred_batch_size
                if self.closed or full or left <= 0:
                    break
                self.changed.wait(left)
            del self.queue[: len(taken)]
            return taken

    def close(self) -> None:
        with self.changed:
            self.closed = True
            self.changed.notify_all()
        self.thread.join()


class TritonFake(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """The server.

    Attributes:
        models: what it serves, by name; a test may change a configuration while it runs.
        live, ready: what it says of itself.
        failing: status and words that ``ModelInfer`` ends with; None for an answer.
        spoiled: what becomes of an answer before it is sent.
        free: unset while calls are to wait.
        begun: set when a call has come.
        asked: methods, in their order.
    """

    VERSION = "2.99.0"

    def __init__(self, repository: Path):
        self.models = {path.name: Served(path) for path in sorted(repository.iterdir()) if path.is_dir()}
        self.live = self.ready = True
        self.failing: tuple[grpc.StatusCode, str] | None = None
        self.spoiled: Any = lambda answer: answer
        self.free = threading.Event()
        self.free.set()
        self.begun = threading.Event()
        self.asked: list[str] = []

    def start(self, credentials: Any = None) -> tuple[Any, int]:
        """Serve on a free port of this machine; the server and its port."""
        sizes = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        server = grpc.server(futures.ThreadPoolExecutor(8), options=sizes)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, server)
        if credentials is None:
            port = server.add_insecure_port("127.0.0.1:0")
        else:
            port = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        return server, port

    def ServerLive(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.asked.append("ServerLive")
        return service_pb2.ServerLiveResponse(live=self.live)

    def ServerReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return service_pb2.ServerReadyResponse(ready=self.ready)

    def ServerMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        return service_pb2.ServerMetadataResponse(name="triton", version=self.VERSION)

    def RepositoryIndex(self, request: Any, context: Any) -> Any:  # noqa: N802
        answer = service_pb2.RepositoryIndexResponse()
        for name in self.models:
            answer.models.add(name=name, version="1", state="READY")
        return answer

    def _model(self, name: str, context: Any) -> Served:
        if name not in self.models:
            context.abort(
                grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{name}' is not found\n(more lines)"
            )
        return self.models[name]

    def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return service_pb2.ModelReadyResponse(ready=request.name in self.models and self.ready)

    def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        config = self._model(request.name, context).config
        answer = service_pb2.ModelMetadataResponse(name=config.name, versions=["1"], platform=config.platform)
        for said, ends in ((answer.inputs, config.input), (answer.outputs, config.output)):
            for end in ends:
                shape = [*([-1] if config.max_batch_size else []), *end.dims]
                said.add(name=end.name, datatype=kind_of(end)[0], shape=shape)
        return answer

    def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.asked.append("ModelConfig")
        return service_pb2.ModelConfigResponse(config=self._model(request.name, context).config)

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.asked.append("ModelInfer")
        self.begun.set()
        self.free.wait()
        model = self._model(request.model_name, context)
        if self.failing is not None:
            context.abort(*self.failing)
        given = {}
        for end, content in zip(request.inputs, request.raw_input_contents, strict=True):
            said = next(one for one in model.config.input if one.name == end.name)
            kind, dtype = kind_of(said)
            shape = list(end.shape)
            if end.datatype != kind or shape[1:] != list(said.dims) or shape[0] > model.config.max_batch_size:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{end.name} is {end.datatype} {shape}")
            given[end.name] = np.frombuffer(content, dtype).reshape(shape)
        answer = service_pb2.ModelInferResponse(model_name=request.model_name, model_version="1")
        for name, value in model.ask(given).items():
            said = next(one for one in model.config.output if one.name == name)
            answer.outputs.add(name=name, datatype=kind_of(said)[0], shape=value.shape)
            answer.raw_output_contents.append(np.ascontiguousarray(value).tobytes())
        return self.spoiled(answer)

    def close(self) -> None:
        self.free.set()
        for model in self.models.values():
            model.close()


if __name__ == "__main__":
    fake = TritonFake(Path(sys.argv[1]))
    if "--hold" in sys.argv:
        fake.free.clear()
    server, port = fake.start()
    print(port, flush=True)
    if "--hold" in sys.argv:
        fake.begun.wait()
        print("begun", flush=True)
    server.wait_for_termination()
