"""The transform by torch against the one by SciPy, and when it is taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: it is what transforms here")

from tfswa.runtime import backends  # noqa: E402
from tfswa.runtime.backends import BackendOptions  # noqa: E402
from tfswa.runtime.errors import TfxError  # noqa: E402
from tfswa.runtime.metrics import snr_db  # noqa: E402
from tfswa.runtime.model.bundle import Bundle  # noqa: E402
from tfswa.runtime.model.opening import BundleModel  # noqa: E402
from tfswa.runtime.model.spec import INPUT, OUTPUT, ModelSpec, StftSpec  # noqa: E402
from tfswa.runtime.stream import codec, transform_torch  # noqa: E402
from tfswa.runtime.stream.separator import Separator  # noqa: E402
from tfswa.runtime.stream.transform import Stft  # noqa: E402
from tfswa.runtime.stream.transform_torch import TorchStft, transform_for  # noqa: E402

FLOAT32_DB = 125.0  # two FFTs in float32 agree to 130 dB and more; a window off by a sample to 60 dB or less


@pytest.mark.parametrize(("n_fft", "hop"), [(4096, 1024), (2048, 512), (512, 128), (48, 16)])
@pytest.mark.parametrize("samples", [0, 1, 1000, 20_001])
def test_it_is_the_same_transform(n_fft: int, hop: int, samples: int) -> None:
    spec = StftSpec(sample_rate=44100, n_fft=n_fft, hop=hop)
    signal = np.random.default_rng(0).standard_normal((2, samples)).astype(np.float32)
    ours, theirs = Stft(spec), TorchStft(spec, "cpu")
    right, found = ours.forward(signal), theirs.forward(signal)
    assert (found.shape, found.dtype) == (right.shape, right.dtype)
    back = theirs.inverse(right, samples)
    assert (back.shape, back.dtype) == (signal.shape, np.float32)
    if samples:
        parts = (right.view(np.float32), found.view(np.float32)), (ours.inverse(right, samples), back)
        for one, other in parts:
            assert (snr_db(one, other) or 0) >= FLOAT32_DB
    with pytest.raises(TfxError, match="is not the"):
        theirs.inverse(right[:, :0], samples or 1)


def test_a_gpu_is_used_where_torch_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    class Made(TorchStft):
        def __init__(self, spec: StftSpec, device: str):
            made.append(device)
            super().__init__(spec, "cpu")

    monkeypatch.setattr(transform_torch, "TorchStft", Made)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    spec = StftSpec(sample_rate=44100, n_fft=512, hop=128)
    for device in ("cuda", "cuda:1", "rtx:1", "cpu", "cuda:2"):
        transform_for(spec, device)
    assert made == ["cuda:0", "cuda:1", "cuda:1"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert transform_for(spec, "cuda").place == "cpu"


def test_without_torch_it_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(transform_torch, "import_module", missing)
    assert transform_for(StftSpec(sample_rate=44100, n_fft=512, hop=128), "cuda").place == "cpu"


def test_a_separator_uses_it_and_says_so(
    tiny_bundle: Bundle, register: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Halves:
        versions, description = {}, "halves"

        def __init__(self, model: Any, options: BackendOptions):
            self.spec: ModelSpec = model.spec

        def infer(self, given: Any) -> Any:
            return {OUTPUT: np.stack([given[INPUT] / 2] * len(self.spec.stems), axis=1)}

        def close(self) -> None:
            pass

    register(backends, "halves", Halves)
    signal = np.random.default_rng(0).standard_normal((2, 30_000)).astype(np.float32)
    found = []
    for transform in (Stft, lambda spec: TorchStft(spec, "cpu")):
        monkeypatch.setattr(codec, "transform_for", lambda spec, device, made=transform: made(spec))
        with Separator(BundleModel("tiny", tiny_bundle), backend="halves") as opened:
            assert opened.description == "halves"
            found.append(opened.separate(signal))
            if found[1:]:
                monkeypatch.setattr(TorchStft, "place", "cuda:0")
                assert opened.description == "halves, STFT on cuda:0"
    assert (snr_db(*found) or 0) >= FLOAT32_DB


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu() -> None:
    spec = StftSpec(sample_rate=44100, n_fft=4096, hop=1024)
    signal = np.random.default_rng(0).standard_normal((2, 244_736)).astype(np.float32)
    transform = transform_for(spec, "cuda")
    assert transform.place == "cuda:0"
    right = Stft(spec).forward(signal)
    found = transform.forward(signal)
    assert (snr_db(right.view(np.float32), found.view(np.float32)) or 0) >= FLOAT32_DB
    assert np.array_equal(found, transform.forward(signal))
    assert (snr_db(signal, transform.inverse(right, signal.shape[-1])) or 0) >= FLOAT32_DB - 10
