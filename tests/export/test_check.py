"""The gate: what it compares on, and everything it must not let through."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray
from planes import Tensors, planes_session

torch = pytest.importorskip("torch", reason="torch is not installed: export needs it")

from tfswa.export import check  # noqa: E402
from tfswa.runtime.errors import AudioError, ExportError, NonFiniteError  # noqa: E402
from tfswa.runtime.model.opening import FileModel  # noqa: E402
from tfswa.runtime.model.spec import INPUT, ModelSpec  # noqa: E402
from tfswa.runtime.songs.synthetic import synthetic_song  # noqa: E402
from tfswa.runtime.stream.transform import Stft  # noqa: E402

Planes = NDArray[np.float32]


class Halves(torch.nn.Module):
    """Every stem is half of the mixture."""

    def forward(self, mixture: Any) -> Any:
        return torch.stack((mixture, mixture), dim=1) * 0.5


class Graph:
    """A session that does what it is told."""

    def __init__(self, change: Any):
        self.change, self.closed = change, False

    def infer(self, given: Tensors) -> Tensors:
        return planes_session(self._halves)(given)

    def _halves(self, mixture: Planes) -> Planes:
        out = np.stack((mixture, mixture), axis=1) * np.float32(0.5)
        return np.asarray(self.change(out), np.float32)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def compare(tiny_spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> Any:
    def run(change: Any, network: Any = None, planes: Planes | None = None) -> dict[str, float]:
        graph = Graph(change)
        monkeypatch.setattr(check, "open_session", lambda *_: graph)
        model = FileModel("x", Path("model.onnx"), "onnx", "fp32", tiny_spec, "0" * 64)
        try:
            given = check.check_tensors(tiny_spec) if planes is None else {INPUT: planes}
            return check.check_graph(network or Halves(), model, given)[0]
        finally:
            assert graph.closed or network is not None

    return run


def test_an_equal_graph_passes_as_exact(compare: Any) -> None:
    assert compare(lambda out: out) == {"vocals": np.inf, "accompaniment": np.inf}


def test_a_graph_just_above_the_gate_passes_with_its_worst_stem_named(compare: Any) -> None:
    def change(out: Planes) -> Planes:
        out[:, 0] *= 1 + 10 ** (-85 / 20)
        return out

    snr = compare(change)
    assert snr["vocals"] == pytest.approx(85.0, abs=1.0)  # float32 rounds the factor itself
    assert snr["accompaniment"] == np.inf


def test_one_stem_below_the_gate_fails_by_name_and_value(compare: Any) -> None:
    def change(out: Planes) -> Planes:
        out[:, 1] *= 1.01
        return out

    with pytest.raises(
        ExportError,
        match=r"^onnx graph differs from eager: stem accompaniment SNR 40\.0 dB, gate 80 dB; not written$",
    ):
        compare(change)


def test_a_fault_in_the_second_item_alone_is_seen(compare: Any) -> None:
    def change(out: Planes) -> Planes:
        out[1:] = 0.0
        return out

    with pytest.raises(ExportError, match="differs from eager"):
        compare(change)


def test_items_that_exchange_places_are_seen(compare: Any) -> None:
    with pytest.raises(ExportError, match="differs from eager"):
        compare(lambda out: out[::-1])


def test_an_item_that_depends_on_its_batch_is_seen(compare: Any) -> None:
    def change(out: Planes) -> Planes:
        # 83 dB from eager either way, 77 dB from each other.
        return out * np.float32(1 + (7.08e-5 if len(out) == 1 else -7.08e-5))

    with pytest.raises(ExportError, match=r"gives an item another result in a batch: stem vocals SNR 77"):
        compare(change)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_one_value_that_is_not_finite_is_named_with_its_stem(compare: Any, bad: float) -> None:
    def change(out: Planes) -> Planes:
        out[-1, 1, 0, 3, 3] = bad
        return out

    with pytest.raises(ExportError, match="NaN or Inf in stem accompaniment; not written"):
        compare(change)


def test_a_broken_network_is_not_blamed_on_the_graph(compare: Any) -> None:
    class Broken(Halves):
        def forward(self, mixture: Any) -> Any:
            return super().forward(mixture) / 0.0

    with pytest.raises(NonFiniteError, match=r"eager network behind model\.onnx gives NaN or Inf"):
        compare(lambda out: out, network=Broken())


def test_silence_is_equal_to_silence_only(compare: Any, tiny_spec: ModelSpec) -> None:
    silence = np.zeros(tiny_spec.input_shape(2), np.float32)
    assert compare(lambda out: out, planes=silence)["vocals"] == np.inf
    with pytest.raises(ExportError, match="SNR -inf dB"):
        compare(lambda out: out + 1e-6, planes=silence)


def planes_of(spec: ModelSpec, audio: Path | None = None) -> Planes:
    """All that a network of planes alone is compared on."""
    (planes,) = check.check_tensors(spec, audio).values()
    return planes


def test_generated_music_is_seeded_loud_and_different_in_each_item(tiny_spec: ModelSpec) -> None:
    first, again = planes_of(tiny_spec), planes_of(tiny_spec)
    assert first.shape == tiny_spec.input_shape(2)
    assert first.dtype == np.float32
    assert np.array_equal(first, again)
    assert np.isfinite(first).all()
    assert not np.allclose(first[0], first[1])
    assert all(np.abs(planes).max() > check.QUIET_RMS for planes in first)


def test_chunks_of_a_file_are_its_first_loud_ones(tiny_spec: ModelSpec, tmp_path: Path) -> None:
    size, rate = tiny_spec.chunk_samples, tiny_spec.stft.sample_rate
    loud = synthetic_song(tiny_spec, (3 * size + 1) / rate).mixture[:, : 3 * size]
    quiet = np.zeros((2, 2 * size), np.float32)
    signal = np.concatenate((quiet, loud[:, :size], quiet, loud[:, size:]), axis=1)
    path = tmp_path / "song.wav"
    soundfile.write(path, signal.T, rate, subtype="FLOAT")
    wanted = Stft(tiny_spec.stft).planes(np.stack((loud[:, :size], loud[:, size : 2 * size])))
    np.testing.assert_array_equal(planes_of(tiny_spec, path), wanted)


def test_a_file_of_less_than_a_chunk_is_padded_and_used_reversed_too(
    tiny_spec: ModelSpec, tmp_path: Path
) -> None:
    rate = tiny_spec.stft.sample_rate
    path = tmp_path / "short.wav"
    soundfile.write(path, synthetic_song(tiny_spec, tiny_spec.chunk_samples / 3 / rate).mixture.T, rate)
    planes = planes_of(tiny_spec, path)
    assert planes.shape == tiny_spec.input_shape(2)
    assert planes[0].any()
    assert not np.allclose(planes[0], planes[1])


@pytest.mark.parametrize("level", [0.0, 5e-4])
def test_a_silent_file_is_refused(tiny_spec: ModelSpec, tmp_path: Path, level: float) -> None:
    path = tmp_path / "silent.wav"
    soundfile.write(path, np.full((30_000, 2), level), tiny_spec.stft.sample_rate, subtype="FLOAT")
    with pytest.raises(AudioError, match="quieter than -60 dBFS"):
        check.check_tensors(tiny_spec, path)


def test_damage_in_the_file_to_compare_on_is_told(
    tiny_spec: ModelSpec, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "song.wav"
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (tiny_spec.chunk_samples, tiny_spec.channels))
    soundfile.write(path, noise, tiny_spec.stft.sample_rate, subtype="FLOAT")
    path.write_bytes(path.read_bytes()[:-1000])
    check.check_tensors(tiny_spec, path)
    assert f"{path}: " in caplog.text
    assert "the rest is missing" in caplog.text
