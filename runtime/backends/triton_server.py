"""A Triton server at the other end of a gRPC channel: its address, questions, answers, and what goes wrong.

grpc://HOST[:8001][/NAME][?timeout_s=300]        grpcs:// goes through TLS
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from tfswa.runtime.backends import import_library
from tfswa.runtime.errors import BackendUnavailable
from tfswa.runtime.escape import shown

SCHEMES = ("grpc", "grpcs")
PORT = 8001  # Triton's own for gRPC
TIMEOUT_S = 300.0
OPEN_TIMEOUT_S = 10.0  # of each question while a session opens


@dataclass(frozen=True)
class ServerAddress:
    """Where a server is.

    Attributes:
        target: host and port.
        secure: whether through TLS.
        model: name of a model; empty where none is said.
        timeout_s: how long a chunk may take, in seconds.
    """

    target: str
    secure: bool
    model: str
    timeout_s: float

    @classmethod
    def of(cls, device: str) -> Self:
        """Read what a user typed as ``--device``.

        Raises:
            BackendUnavailable: it is no address of a server.
        """
        how = "use --device grpc://HOST:PORT or grpcs://HOST:PORT"
        if "://" not in device:
            raise BackendUnavailable(f"backend triton runs on a server, the device is {device}: {how}")
        try:
            url = urlsplit(device)
            host, port = url.hostname, url.port or PORT
            query = parse_qs(url.query, keep_blank_values=True, strict_parsing=bool(url.query))
            timeout_s = float(query.pop("timeout_s", [str(TIMEOUT_S)])[-1])
        except ValueError as error:
            raise BackendUnavailable(f"unknown device {device!r} ({error}): {how}") from error
        amiss = url.scheme not in SCHEMES or not host or url.username is not None or url.fragment or query
        model = url.path.strip("/")
        if amiss or "/" in model or not 0 < timeout_s < 1e6:
            raise BackendUnavailable(
                f"unknown device {device!r}: {how}, behind it /NAME of a model and ?timeout_s=SECONDS "
                "where needed"
            )
        host = f"[{host}]" if ":" in str(host) else host
        return cls(f"{host}:{port}", url.scheme == "grpcs", model, timeout_s)


class TritonServer:
    """Questions to a server and its answers. Nothing is asked twice.

    Args:
        address: where it is.

    Attributes:
        target: host and port.
        messages: the protocol's messages.
        timeout_s: how long a chunk may take.

    Raises:
        BackendUnavailable: tritonclient is missing. All questions: no answer, none in time, or an error, in
            one line that says what to do.
    """

    def __init__(self, address: ServerAddress):
        # Its core writes to stderr what is told in one line here.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        self._grpc = import_library("grpc", backend="triton")
        import_library("google.protobuf", backend="triton")
        protocol = import_library("tritonclient.grpc", backend="triton")
        self.target, self.messages, self.timeout_s = address.target, protocol.service_pb2, address.timeout_s
        sizes = [(f"grpc.max_{way}_message_length", -1) for way in ("send", "receive")]
        if address.secure:
            credentials = self._grpc.ssl_channel_credentials()
            self._channel = self._grpc.secure_channel(address.target, credentials, sizes)
        else:
            self._channel = self._grpc.insecure_channel(address.target, sizes)
        self._stub = protocol.service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def check_up(self) -> str:
        """See that it runs and is ready; return its version."""
        if not self.ask("ServerLive").live or not self.ask("ServerReady").ready:
            raise BackendUnavailable(f"Triton at {self.target} is up and not ready: see its log, or wait")
        return shown(self.ask("ServerMetadata").version)

    def metadata(self, name: str) -> Any:
        """What a model takes and gives, and its versions."""
        request = self.messages.ModelMetadataRequest(name=name)
        try:
            return self._stub.ModelMetadata(request, timeout=OPEN_TIMEOUT_S)
        except self._grpc.RpcError as error:
            if error.code().name not in ("NOT_FOUND", "UNAVAILABLE", "INVALID_ARGUMENT"):
                raise self._failed(error, "ModelMetadata", OPEN_TIMEOUT_S) from error
            raise BackendUnavailable(
                f"Triton at {self.target} has no model {name!r} ready{self._others()} ({_details(error)}): "
                "name one with --device grpc://HOST:PORT/NAME, or load it there"
            ) from error

    def ask(self, method: str, timeout_s: float | None = None, **values: Any) -> Any:
        """A question about the server or a model, and its answer; within 10 s unless a time is given."""
        timeout_s = timeout_s or OPEN_TIMEOUT_S
        request = getattr(self.messages, f"{method}Request")(**values)
        return self.end(self.begin(method, request, timeout_s), method, timeout_s)

    def begin(self, method: str, request: Any, timeout_s: float | None = None) -> Any:
        """Send a request; ``end`` waits for its answer."""
        return getattr(self._stub, method).future(request, timeout=timeout_s or self.timeout_s)

    def end(self, call: Any, method: str, timeout_s: float | None = None) -> Any:
        """Wait for the answer to a request."""
        try:
            return call.result()
        except self._grpc.RpcError as error:
            raise self._failed(error, method, timeout_s or self.timeout_s) from error

    def close(self) -> None:
        """Leave."""
        self._channel.close()

    def _others(self) -> str:
        """What it serves, in words; nothing where it does not say."""
        with suppress(self._grpc.RpcError):
            request = self.messages.RepositoryIndexRequest(ready=True)
            index = self._stub.RepositoryIndex(request, timeout=OPEN_TIMEOUT_S)
            return f", it serves {', '.join(sorted({one.name for one in index.models})) or 'none'}"
        return ""

    def _failed(self, error: Any, method: str, timeout_s: float) -> BackendUnavailable:
        code = error.code().name
        if code == "UNAVAILABLE":
            return BackendUnavailable(
                f"no Triton server answers at {self.target} ({_details(error)}): start it, or check --device"
            )
        if code == "DEADLINE_EXCEEDED":
            return BackendUnavailable(
                f"Triton at {self.target} did not answer {method} within {timeout_s:g} s: see its log, or "
                "give it longer with --device 'grpc://HOST:PORT?timeout_s=SECONDS'"
            )
        return BackendUnavailable(
            f"Triton at {self.target} answers {method} with {code} ({_details(error)}): see its log"
        )


def _details(error: Any) -> str:
    """What an error says, in one line."""
    return " ".join(str(error.details() or "no reason given").split())
