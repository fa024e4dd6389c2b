"""The mutation check: defects that real deployments had, planted one by one, and the gate that catches each.

A network whose weights are all at work (the small residual branches of a fresh one would hide faults) runs as
its own artifact, where it passes every gate. Each defect is then planted in the artifact or its host alone.
A stale engine comes not as far as a gate of decibels: its key or its self-test refuses it when it is loaded.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gpu_place import Place
from parity_fakes import CHUNK, HYPER, RATE, STFT
from planes import infer_planes

torch = pytest.importorskip("torch", reason="torch is not installed: artifact and reference are networks")

from tfswa.runtime import backends  # noqa: E402
from tfswa.runtime.backends import BackendOptions  # noqa: E402
from tfswa.runtime.backends.trt import TrtSession  # noqa: E402
from tfswa.runtime.errors import BackendUnavailable, BundleError, TfxError  # noqa: E402
from tfswa.runtime.gates import default_gates  # noqa: E402
from tfswa.runtime.model.bundle import Bundle  # noqa: E402
from tfswa.runtime.model.opening import BundleModel  # noqa: E402
from tfswa.runtime.model.spec import OUTPUT  # noqa: E402
from tfswa.runtime.parity.certificate import Certificate  # noqa: E402
from tfswa.runtime.parity.compare import compare  # noqa: E402
from tfswa.runtime.parity.corpus import Item  # noqa: E402
from tfswa.runtime.parity.judge import judge  # noqa: E402
from tfswa.runtime.songs.loading import Song  # noqa: E402
from tfswa.runtime.stream import codec, fader, transform  # noqa: E402
from tfswa.train.backend import TorchSession, new_bundle  # noqa: E402
from tfswa.train.blocks.window import WindowAttention  # noqa: E402

Plant = Callable[[pytest.MonkeyPatch], None]
STEMS = ("vocals", "accompaniment")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> BundleModel:
    folder = tmp_path_factory.mktemp("defects")
    hyper = {**HYPER, "depths": [2, 2]}  # every second block has shifted windows
    fresh = new_bundle("tfswa_lite", folder / "fresh.tfx", hyper=hyper, stft=STFT, chunk=CHUNK)
    random = np.random.default_rng(0)
    weights = {
        name: (value + 0.2 * random.standard_normal(value.shape)).astype(np.float32)
        for name, value in fresh.weights().items()
    }
    weights["std"] = np.abs(weights["std"]) + 0.5
    path = folder / "model.tfx"
    return BundleModel(str(path), Bundle.create(path, fresh.spec, weights))


@pytest.fixture(scope="module")
def song() -> Song:
    """Noise over all bins, louder and softer, in two channels that differ: nothing is left out."""
    random = np.random.default_rng(1)
    level = 0.1 + 0.1 * np.sin(np.arange(RATE) / 700)
    stems = {stem: (level * random.standard_normal((2, RATE))).astype(np.float32) for stem in STEMS}
    return Song("noise", stems["vocals"] + stems["accompaniment"], stems)


def in_the_network(change: Callable[[Any], None]) -> Plant:
    """Change the artifact's network; the reference has its own."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        made = TorchSession.__init__

        def init(session: Any, *given: Any) -> None:
            made(session, *given)
            change(session._network)

        patch.setattr(TorchSession, "__init__", init)

    return plant


def in_its_output(change: Callable[[Any], Any]) -> Plant:
    """Change what the artifact gives, ``[B, S, 2*C, T, F]``."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        made = TorchSession.infer

        def infer(session: Any, given: Any) -> Any:
            out = made(session, given)
            return {**out, OUTPUT: change(out[OUTPUT].copy())}

        patch.setattr(TorchSession, "infer", infer)

    return plant


def in_the_host(target: Any, name: str, change: Callable[[Any], Any]) -> Plant:
    """Replace a function of the host by one made from it; the reference has a host of its own."""
    return lambda patch: patch.setattr(target, name, change(getattr(target, name)))


def unmask(network: Any) -> None:
    shifted = [module for module in network.modules() if isinstance(module, WindowAttention) and module.shift]
    assert shifted
    for module in shifted:
        module.masks.zero_()


def overflow(network: Any) -> None:
    """float16 without a plan: a factor that nobody looked at takes a result beyond 65,504."""
    module = next(module for module in network.modules() if isinstance(module, torch.nn.Conv2d))
    module.register_forward_hook(lambda module, given, out: (out * 1e5).half().float() * 1e-5)


def older(network: Any) -> None:
    """What was built from an older checkpoint."""
    for parameter in network.parameters():
        parameter.data *= 1.001


def statistics(network: Any) -> None:
    network.mean.zero_()
    network.std.fill_(1.0)


def leak(out: Any) -> Any:
    out[1:] += np.float32(0.01) * out[:-1]
    return out


def one_seam(real: Callable[..., Any]) -> Callable[..., Any]:
    """The third chunk fades in the wrong way round."""
    blended: list[Any] = []

    def blend(fader: Any, chunk: Any, stems: Any) -> Any:
        blended.append(fader)
        right = fader.weights[1]
        if blended.count(fader) == 3:
            met = len(fader._behind)
            fader.weights[1] = np.concatenate((right[:met][::-1], right[met:]))
            fader._behind = fader._behind[::-1]
        try:
            return real(fader, chunk, stems)
        finally:
            fader.weights[1] = right

    return blend


def without_nyquist(real: Callable[..., Any]) -> Callable[..., Any]:
    return lambda planes, spectra, spec: [spectra.fill(0), real(planes, spectra, spec)]


def symmetric(length: int) -> Any:
    return np.sin(np.pi * np.arange(length) / (length - 1)) ** 2


def rolled(real: Callable[..., Any]) -> Callable[..., Any]:
    return lambda length: np.roll(real(length), 1)


def one_hop_late(real: Callable[..., Any]) -> Callable[..., Any]:
    return lambda transform, signal: np.roll(real(transform, signal), 1, axis=-2)


DEFECTS: dict[str, tuple[Plant, str]] = {
    "window off by one sample": (in_the_host(transform, "_hann", rolled), "signal"),
    "symmetric for periodic Hann": (in_the_host(transform, "_hann", lambda real: symmetric), "signal"),
    "hop off by one frame": (in_the_host(transform.Stft, "forward", one_hop_late), "signal"),
    "swapped stems": (in_its_output(lambda out: out[:, ::-1]), "graph"),
    "swapped real and imaginary parts": (in_its_output(lambda out: out[:, :, [1, 0, 3, 2]]), "graph"),
    "swapped channels": (in_its_output(lambda out: out[:, :, [2, 3, 0, 1]]), "graph"),
    "overlap weights of one chunk": (in_the_host(fader.Fader, "add", one_seam), "signal"),
    "Nyquist bin not restored": (in_the_host(codec, "unpack", without_nyquist), "signal"),
    "leak between the items of a batch": (in_its_output(leak), "axes"),
    "shift mask missing": (in_the_network(unmask), "graph"),
    "float16 overflow": (in_the_network(overflow), "finite"),
    "artifact of older weights": (in_the_network(older), "graph"),
    "wrong normalization statistics": (in_the_network(statistics), "graph"),
}


def measured(model: BundleModel, song: Song) -> Certificate:
    transform.gain_of.cache_clear()  # it is made of the window, which a defect may change
    try:
        return compare(model, [Item.of(song)], backend="torch")
    finally:
        transform.gain_of.cache_clear()


def test_without_a_defect_nothing_is_found(model: BundleModel, song: Song) -> None:
    assert judge(measured(model, song), default_gates()) == []


@pytest.mark.parametrize("name", list(DEFECTS))
def test_each_defect_is_caught_by_its_gate(
    model: BundleModel, song: Song, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    plant, level = DEFECTS[name]
    plant(monkeypatch)
    found = judge(measured(model, song), default_gates())
    assert level in {breach.level for breach in found}
    if level in ("signal", "axes"):  # the network itself is right
        assert "graph" not in {breach.level for breach in found}


@pytest.fixture
def place(
    model: BundleModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, register: Callable[..., None]
) -> Place:
    """The same network as an engine on a simulated GPU, where it passes every gate."""
    if "trt" not in backends.backend_names():
        register(backends, "trt", TrtSession)
    shutil.copytree(model.bundle.path, tmp_path / "engine.tfx")
    place = Place(Bundle.open(tmp_path / "engine.tfx"), monkeypatch)
    session = TorchSession(model, BackendOptions())
    right = partial(infer_planes, session)
    place.machine(net=right)
    place.answer(right)
    return place


def on_the_gpu(place: Place, song: Song) -> Certificate:
    return compare(place.model, [Item.of(song)], backend="trt", options=BackendOptions(device="cuda"))


def test_an_engine_without_a_defect_is_measured(place: Place, song: Song) -> None:
    assert judge(on_the_gpu(place, song), default_gates()) == []


def of_an_older_graph(place: Place, model: BundleModel) -> None:
    """The bundle was exported anew, the engine was not built anew: its key tells."""
    place.engine(onnx_sha256="0" * 64)


def under_a_new_key(place: Place, model: BundleModel) -> None:
    """A build that took the wrong file, or a cache that mixed two up: its answer tells."""
    session = TorchSession(model, BackendOptions())
    older(session._network)
    place.machine(net=partial(infer_planes, session))


@pytest.mark.parametrize(
    ("defect", "error", "gate"),
    [
        (of_an_older_graph, BackendUnavailable, "was built from other weights"),
        (under_a_new_key, BundleError, "in its self-test, fp32 must reach"),
    ],
    ids=["stale engine", "stale engine under a new key"],
)
def test_a_stale_engine_is_caught_when_it_is_loaded(
    place: Place, model: BundleModel, song: Song, defect: Any, error: type[TfxError], gate: str
) -> None:
    defect(place, model)
    with pytest.raises(error, match=gate):
        on_the_gpu(place, song)
    place.left_nothing()
