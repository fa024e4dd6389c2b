"""A machine with a simulated GPU, and a bundle with an engine for it."""

from __future__ import annotations

import gc
import hashlib
import io
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from planes import planes_session
from simulated_gpu import Network, SimulatedCuda, SimulatedTensorRt

from tfswa.runtime.backends import BackendOptions
from tfswa.runtime.backends.engines import PORTABLE, TRANSFORM, answer_of, probe, quiet_noise, samples
from tfswa.runtime.backends.trt import TrtSession
from tfswa.runtime.model import trust
from tfswa.runtime.model.bundle import Bundle
from tfswa.runtime.model.opening import BundleModel, open_model
from tfswa.runtime.model.spec import INPUT, OUTPUT

ENGINE = "engines/0123456789abcdef.engine"


def network(mixture: NDArray[np.float32]) -> NDArray[np.float32]:
    """Two stems that nothing but the right item in the right place gives."""
    return np.stack((0.25 * mixture, 0.5 * np.flip(mixture, -1)), axis=1)


class Place:
    """A machine and a bundle with an engine, all of which a test may change before it opens a session."""

    def __init__(self, bundle: Bundle, patch: pytest.MonkeyPatch, net: Any = network):
        self.patch, self.path = patch, bundle.path
        self.nets: dict[str, Network] = {}  # of the transform's graphs
        self.spec = bundle.spec
        self.details: dict[str, Any] = {
            "flavor": "rtx",
            "version": "1.7.1.116",
            "precision": "fp32",
            "batch": [1, 2, 4],
            "target": PORTABLE,
        }
        self.machine(net=net)
        if "model.onnx" not in bundle.files:
            self.add("model.onnx", b"graph", kind="onnx", precision="fp32")
        self.engine()

    def machine(self, cuda: SimulatedCuda | None = None, net: Any = network, **library: Any) -> None:
        self.cuda = cuda or SimulatedCuda()
        self.library = SimulatedTensorRt(self.cuda, self._named(net), self.spec.takes, **library)
        for graph, net in self.nets.items():
            self.machine_of(graph, net)
        self.patch.setitem(sys.modules, "cuda.bindings.runtime", self.cuda)
        self.patch.setitem(sys.modules, "tensorrt_rtx", self.library)

    def engine(self, plan: bytes = b"engine", name: str = ENGINE, **details: Any) -> None:
        found = Bundle.open(self.path).files["model.onnx"].sha256
        about = {"onnx_sha256": found, **self.details, **details}
        self.add(name, plan, kind="engine", precision=about["precision"], details=about)

    def transforms(self, nets: Mapping[str, Network], **details: Any) -> None:
        """Add graphs of the transform, engines of them, and answers."""
        for graph, net in nets.items():
            self.add(graph, graph.encode(), kind="transform", precision="fp32")
            digest, plan = Bundle.open(self.path).files[graph].sha256, plan_of(graph)
            about = {**self.details, "onnx_sha256": digest, **details}
            self.add(self.engine_of(graph), plan, kind=TRANSFORM, precision="fp32", details=about)
            found = net(quiet_noise(self.spec.transforms[graph][0]))
            right = samples({tensor: value[0] for tensor, value in found.items()})
            self.store_answer(right, self.engine_of(graph))
            self.nets[graph] = net
            self.machine_of(graph, net)

    def engine_of(self, graph: str) -> str:
        return f"engines/{graph.removesuffix('.onnx')}.engine"

    def machine_of(self, graph: str, net: Network) -> None:
        """Have the library compute a graph of the transform by ``net``."""
        takes, profile = self.spec.transforms[graph][0], self.library.profile
        self.library.others[plan_of(graph)] = SimulatedTensorRt(self.cuda, net, takes, profile=profile)

    def answer(self, net: Any, name: str = ENGINE) -> None:
        found = self._named(net)(probe(self.spec))
        self.store_answer(samples({tensor: value[0] for tensor, value in found.items()}), name)

    def _named(self, net: Any) -> Network:
        """A network of a model that takes planes alone may be a function of these."""
        alone = {*self.spec.takes, *self.spec.gives} == {INPUT, OUTPUT}
        return planes_session(net) if alone else net  # type: ignore[no-any-return]

    def store_answer(self, right: NDArray[np.float32], name: str = ENGINE) -> None:
        data = io.BytesIO()
        np.save(data, right)
        self.add(answer_of(name), data.getvalue(), kind="answer")

    def add(self, name: str, data: bytes, **entry: Any) -> None:
        Bundle.open(self.path).add(name, lambda path: write_bytes(path, data), **entry)
        trust.made_here(hashlib.sha256(data).hexdigest())

    @property
    def model(self) -> BundleModel:
        opened = open_model(self.path)
        assert isinstance(opened, BundleModel)
        return opened

    def open(self, **options: Any) -> TrtSession:
        return TrtSession(self.model, BackendOptions(**{"device": "cuda", **options}))

    def refuses(self, kind: type[Exception], match: str, **options: Any) -> None:
        with pytest.raises(kind, match=match) as refused:
            self.open(**options)
        assert "\n" not in str(refused.value)
        del refused
        self.left_nothing()

    def left_nothing(self) -> None:
        gc.collect()
        assert {kind: count for kind, count in self.cuda.live.items() if count} == {}


@contextmanager
def nothing_else_collected() -> Iterator[None]:
    """Have the garbage collector look at what comes from now on alone: a look at all takes half a second."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def plan_of(graph: str) -> bytes:
    return f"engine of {graph}".encode()


def write_bytes(path: Path, data: bytes) -> None:
    path.write_bytes(data)
