"""The transform against torch, its round trip, and the plane layout."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tfswa.runtime.errors import TfxError
from tfswa.runtime.model.spec import PADDINGS, WINDOWS, StftSpec
from tfswa.runtime.stream import transform as stft_module
from tfswa.runtime.stream.transform import Stft, pack, unpack

torch = pytest.importorskip("torch", reason="torch is not installed: its STFT is the reference here")

SIZES = [(4096, 1024), (2048, 512), (2048, 1024), (512, 128), (48, 16)]

# Two float32 transforms differ by their rounding, some 1e-7 to 1e-6 of the largest bin. The faults planted
# below change bins by more than ten times this tolerance.
TORCH_TOLERANCE = 1e-5
ROUND_TRIP_TOLERANCE = 1e-6


def noise(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(-1.0, 1.0, shape).astype(np.float32)


def torch_forward(spec: StftSpec, signal: NDArray[np.float32]) -> NDArray[np.complex64]:
    spectrum = torch.stft(
        torch.from_numpy(signal),
        spec.n_fft,
        spec.hop,
        window=torch.hann_window(spec.n_fft, periodic=True)
        if spec.window == "hann"
        else torch.ones(spec.n_fft),
        center=True,
        pad_mode="constant" if spec.padding == "zero" else "reflect",
        normalized=False,
        return_complex=True,
    )
    return spectrum.transpose(-1, -2).numpy()


def torch_inverse(spec: StftSpec, spectrum: NDArray[np.complex64], samples: int) -> NDArray[np.float32]:
    return torch.istft(
        torch.from_numpy(spectrum).transpose(-1, -2),
        spec.n_fft,
        spec.hop,
        window=torch.hann_window(spec.n_fft, periodic=True),
        center=True,
        length=samples,
    ).numpy()


def error_against_torch(spec: StftSpec, samples: int) -> float:
    """Largest difference over the frames that both have, relative to the largest bin."""
    signal = noise(2, samples)
    theirs = torch_forward(spec, signal)
    ours = Stft(spec).forward(signal)[:, : theirs.shape[1]] / spec.scale
    assert theirs.shape[1] == 1 + samples // spec.hop
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@pytest.mark.parametrize(("n_fft", "hop"), SIZES)
@pytest.mark.parametrize("hops", [0.001, 1.0, 3.7, 20.0, 20.5])
def test_forward_agrees_with_torch(n_fft: int, hop: int, hops: float) -> None:
    assert error_against_torch(StftSpec(n_fft, hop), max(1, round(hops * hop))) < TORCH_TOLERANCE


@pytest.mark.parametrize("fault", ["late", "symmetric"])
def test_comparison_with_torch_notices_a_wrong_window(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    def late(length: int) -> NDArray[np.float64]:
        return np.sin(np.pi * (np.arange(length) - 1) / length) ** 2

    def symmetric(length: int) -> NDArray[np.float64]:
        return np.hanning(length)

    monkeypatch.setattr(stft_module, "_hann", {"late": late, "symmetric": symmetric}[fault])
    assert error_against_torch(StftSpec(), 30_000) > 10 * TORCH_TOLERANCE


@pytest.mark.parametrize(("n_fft", "hop"), SIZES)
def test_inverse_agrees_with_torch_on_spectra_no_signal_has(n_fft: int, hop: int) -> None:
    # Random spectra, as a network makes them: here a wrong synthesis window shows, in a round trip it
    # would not. A whole number of hops gives both sides the same frames, up to the last sample.
    spec = StftSpec(n_fft, hop)
    samples = 30 * hop
    shape = (2, spec.frames(samples), spec.bins + 1)
    spectrum = (noise(*shape) + 1j * noise(*shape, seed=1)).astype(np.complex64)
    ours = Stft(spec).inverse(spectrum, samples) * spec.scale
    theirs = torch_inverse(spec, spectrum, samples)
    assert np.abs(ours - theirs).max() < TORCH_TOLERANCE * np.abs(theirs).max()


@settings(deadline=None, max_examples=60)
@given(
    size=st.sampled_from(SIZES),
    samples=st.integers(0, 20_000),
    channels=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_round_trip_returns_the_signal(size: tuple[int, int], samples: int, channels: int, seed: int) -> None:
    transform = Stft(StftSpec(*size))
    signal = noise(channels, samples, seed=seed)
    spectrum = transform.forward(signal)
    assert spectrum.dtype == np.complex64
    assert spectrum.shape == (channels, transform.spec.frames(samples), transform.spec.bins + 1)
    back = transform.inverse(spectrum, samples)
    assert back.dtype == np.float32
    assert back.shape == signal.shape
    np.testing.assert_allclose(back, signal, rtol=0, atol=ROUND_TRIP_TOLERANCE)


@pytest.mark.parametrize(("n_fft", "hop"), SIZES)
@pytest.mark.parametrize("samples", [0, 1, 2, 3])
def test_round_trip_of_almost_nothing(n_fft: int, hop: int, samples: int) -> None:
    transform = Stft(StftSpec(n_fft, hop))
    signal = np.ones((2, 2, samples), np.float32)
    back = transform.inverse(transform.forward(signal), samples)
    assert back.shape == signal.shape
    np.testing.assert_allclose(back, signal, rtol=0, atol=ROUND_TRIP_TOLERANCE)


@st.composite
def specs(draw: st.DrawFn) -> StftSpec:
    """Any specification that is taken, drawn by its parts so that few are rejected."""
    n_fft = 2 * draw(st.integers(1, 150))
    window = draw(st.sampled_from(WINDOWS))
    hop = draw(st.integers(1, n_fft if window == "none" else max(1, int(0.8 * n_fft))))
    return StftSpec(
        n_fft,
        hop,
        scale=draw(st.sampled_from([1.0, 1 / 32, n_fft**-0.5])),
        window=window,
        padding=draw(st.sampled_from(PADDINGS)),
        offset=draw(st.integers(0, hop // 2)),
        fill=draw(st.just(0) | st.integers(0, 2 * n_fft)),
    )


@settings(deadline=None, max_examples=200)
@given(spec=specs(), samples=st.integers(0, 2000), seed=st.integers(0, 2**32 - 1))
def test_round_trip_of_any_specification(spec: StftSpec, samples: int, seed: int) -> None:
    signal = noise(2, samples, seed=seed)
    transform = Stft(spec)
    spectrum = transform.forward(signal)
    assert spectrum.shape == (2, spec.frames(samples), spec.all_bins)
    # A sum of m terms of one sign rounds by m / 2^24 of it at most; where windows sum to little, that is
    # divided by as little.
    terms = -(-spec.n_fft // spec.hop)
    tolerance = (ROUND_TRIP_TOLERANCE + terms * 2.0**-23) / spec.least_sum
    np.testing.assert_allclose(transform.inverse(spectrum, samples), signal, rtol=0, atol=tolerance)


@settings(deadline=None, max_examples=100)
@given(spec=specs(), samples=st.integers(1, 500), seed=st.integers(0, 2**32 - 1))
def test_what_is_filled_up_has_the_spectra_of_a_signal_with_zeros_behind_it(
    spec: StftSpec, samples: int, seed: int
) -> None:
    signal, plain = noise(2, samples, seed=seed), dataclasses.replace(spec, fill=0)
    longer = np.pad(signal, ((0, 0), (0, spec.fill)))
    spectrum = Stft(plain).forward(longer)
    np.testing.assert_array_equal(Stft(spec).forward(signal), spectrum)
    whole = Stft(plain).inverse(spectrum, samples + spec.fill)
    np.testing.assert_array_equal(Stft(spec).inverse(spectrum, samples), whole[..., :samples])


@settings(deadline=None, max_examples=100)
@given(spec=specs(), samples=st.integers(0, 500), seed=st.integers(0, 2**32 - 1))
def test_an_endless_signal_comes_back_quieter_at_its_ends_as_frames_are_of_silence_there(
    spec: StftSpec, samples: int, seed: int
) -> None:
    spectrum = Stft(spec).forward(noise(2, samples, seed=seed))
    found = Stft(dataclasses.replace(spec, endless=True)).inverse(spectrum, samples)
    # The same frames among those of silence, of a signal that reaches so far beyond them.
    more = -(-spec.n_fft // spec.hop)
    plain = dataclasses.replace(spec, fill=0)
    longer = (spectrum.shape[-2] - 1 + 2 * more) * spec.hop + 2 * spec.offset
    right = Stft(plain).inverse(np.pad(spectrum, ((0, 0), (more, more), (0, 0))), longer)
    right = right[:, more * spec.hop :][:, :samples]
    tolerance = (ROUND_TRIP_TOLERANCE + more * 2.0**-23) / spec.least_sum
    np.testing.assert_allclose(found, right, rtol=0, atol=tolerance)
    assert (np.abs(found) <= np.abs(Stft(spec).inverse(spectrum, samples)) + tolerance).all()


@settings(deadline=None, max_examples=100)
@given(spec=specs(), hops=st.integers(1, 9), seed=st.integers(0, 2**32 - 1))
def test_any_specification_without_offset_agrees_with_torch(spec: StftSpec, hops: int, seed: int) -> None:
    spec = dataclasses.replace(spec, offset=0, fill=0)
    samples = hops * spec.hop
    assume(spec.padding == "zero" or samples > spec.n_fft // 2)  # torch mirrors once, and refuses the rest
    signal = noise(2, samples, seed=seed)
    theirs = torch_forward(spec, signal)
    ours = Stft(spec).forward(signal) / spec.scale
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= TORCH_TOLERANCE * max(1.0, np.abs(theirs).max())


def test_a_short_signal_is_mirrored_again_and_again() -> None:
    spec = StftSpec(16, 4, window="none", padding="reflect", scale=1.0)
    ramp = np.array([1.0, 2.0, 3.0], np.float32)  # ... 3 2 1 2 3 2 1 2 3 ...
    endless = np.tile([1.0, 2.0, 3.0, 2.0], 9)
    found = Stft(spec).forward(ramp)
    for frame in range(spec.frames(3)):
        first = 16 + 4 * frame - 8  # sample 16 of it is the signal's first
        np.testing.assert_allclose(found[frame], np.fft.rfft(endless[first : first + 16]), atol=1e-5)
    assert np.isfinite(Stft(spec).forward(ramp[:1])).all()


def test_an_offset_moves_the_frames_and_nothing_else() -> None:
    signal = noise(2, 40 * 128)
    later = Stft(StftSpec(512, 128, offset=64)).forward(signal)
    moved = Stft(StftSpec(512, 128)).forward(signal[:, 64:])
    np.testing.assert_allclose(later[:, 4:36], moved[:, 4:36], rtol=0, atol=1e-6)


def test_bins_below_the_bound_are_zero() -> None:
    spec = StftSpec(16, 4, seen=(2, 5), zero_below=4)
    planes = np.ones((2, 3, 5), np.float32)
    spectrum = np.full((1, 3, 9), 7.0, np.complex64)
    unpack(planes, spectrum, spec)
    np.testing.assert_array_equal(spectrum[0, 0], [7, 7, 0, 0, 1 + 1j, 1 + 1j, 1 + 1j, 7, 7])
    np.testing.assert_array_equal(pack(spectrum, spec)[0, 0], [0, 0, 1, 1, 1])


def test_a_signal_without_leading_axes_and_one_with_none_of_them() -> None:
    transform = Stft(StftSpec(512, 128))
    assert transform.forward(noise(1000)).shape == (9, 257)
    assert transform.inverse(transform.forward(noise(1000)), 1000).shape == (1000,)
    assert transform.forward(np.zeros((0, 2, 1000), np.float32)).shape == (0, 2, 9, 257)
    assert transform.inverse(np.zeros((0, 2, 9, 257), np.complex64), 1000).shape == (0, 2, 1000)


def test_results_do_not_depend_on_grouping_or_workers() -> None:
    # 7 x 37 frames is no multiple of any SIMD width, so scalar remainders and vector batches both occur.
    one, three = Stft(StftSpec(), workers=1), Stft(StftSpec(), workers=3)
    chunks = noise(7, 36 * 1024)
    together = one.forward(chunks)
    np.testing.assert_array_equal(together, three.forward(chunks))
    np.testing.assert_array_equal(together, np.stack([one.forward(chunk) for chunk in chunks]))
    signals = one.inverse(together, chunks.shape[-1])
    np.testing.assert_array_equal(signals, three.inverse(together, chunks.shape[-1]))
    apart = np.stack([one.inverse(spectrum, chunks.shape[-1]) for spectrum in together])
    np.testing.assert_array_equal(signals, apart)


def test_frames_are_joined_exactly_where_blocks_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    transform = Stft(StftSpec(512, 128))
    signal = noise(2, 10_000)
    spectrum = transform.forward(signal)
    whole = transform.inverse(spectrum, 10_000)
    monkeypatch.setattr(stft_module, "_BLOCK_SAMPLES", 5 * 512)
    np.testing.assert_array_equal(transform.forward(signal), spectrum)
    # Block boundaries change the order of additions, hence no equality of bits.
    np.testing.assert_allclose(transform.inverse(spectrum, 10_000), whole, rtol=0, atol=ROUND_TRIP_TOLERANCE)


def test_transform_is_linear() -> None:
    transform = Stft(StftSpec(2048, 512))
    first, second = noise(2, 9000), noise(2, 9000, seed=1)
    mixed = transform.forward(0.5 * first - 0.25 * second)
    apart = 0.5 * transform.forward(first) - 0.25 * transform.forward(second)
    np.testing.assert_allclose(mixed, apart, rtol=0, atol=1e-6 * np.abs(mixed).max())


def test_scale_keeps_a_full_scale_sine_at_32() -> None:
    sine = np.sin(2 * np.pi * 100 / 4096 * np.arange(40_960)).astype(np.float32)
    magnitude = np.abs(Stft(StftSpec()).forward(sine)[20, 100])
    np.testing.assert_allclose(magnitude, 32.0, rtol=1e-5)


def test_inputs_are_left_alone() -> None:
    transform = Stft(StftSpec(512, 128))
    signal = noise(2, 3000)
    kept = signal.copy()
    spectrum = transform.forward(signal)
    np.testing.assert_array_equal(signal, kept)
    kept_spectrum = spectrum.copy()
    transform.inverse(spectrum, 3000)
    np.testing.assert_array_equal(spectrum, kept_spectrum)


def test_pack_orders_planes_as_the_contract_says() -> None:
    spectrum = (noise(3, 2, 5, 9) + 1j * noise(3, 2, 5, 9, seed=1)).astype(np.complex64)
    spec = StftSpec(16, 4)
    planes = pack(spectrum, spec)
    assert planes.shape == (3, 4, 5, 8)
    assert planes.dtype == np.float32
    for channel in range(2):
        np.testing.assert_array_equal(planes[:, 2 * channel], spectrum[:, channel, :, :8].real)
        np.testing.assert_array_equal(planes[:, 2 * channel + 1], spectrum[:, channel, :, :8].imag)
    back = np.full_like(spectrum, 7.0)
    unpack(planes, back, spec)
    np.testing.assert_array_equal(back[..., :-1], spectrum[..., :-1])
    assert (back[..., -1] == 7.0).all(), "what the network does not see is left alone"


def test_unpack_takes_half_precision() -> None:
    spectrum = np.zeros((1, 3, 5), np.complex64)
    unpack(np.full((2, 3, 4), 0.5, np.float16), spectrum, StftSpec(8, 4))
    np.testing.assert_array_equal(spectrum[..., :-1], np.full((1, 3, 4), 0.5 + 0.5j))


def test_nyquist_survives_the_way_through_the_planes() -> None:
    transform = Stft(StftSpec(512, 128))
    signal = np.tile(np.array([1.0, -1.0], np.float32), (2, 2500))
    spectrum = transform.forward(signal)
    with_it, without = spectrum.copy(), np.zeros_like(spectrum)
    for target in (with_it, without):
        unpack(pack(spectrum, transform.spec), target, transform.spec)
    back = transform.inverse(with_it, 5000)
    np.testing.assert_allclose(back, signal, rtol=0, atol=ROUND_TRIP_TOLERANCE)
    heard = np.abs(transform.inverse(without, 5000) - signal).max()
    assert heard > 0.5, "the signal of this test must need the Nyquist bin"


def test_wrong_shapes_are_named() -> None:
    transform = Stft(StftSpec(512, 128))
    with pytest.raises(TfxError, match=r"\[9, 257\] is not the \[10, 257\]"):
        transform.inverse(transform.forward(noise(2, 1000)), 1100)
    with pytest.raises(TfxError, match="do not belong together"):
        unpack(np.zeros((3, 5, 8), np.float32), np.zeros((1, 5, 9), np.complex64), StftSpec(16, 4))
    with pytest.raises(TfxError, match="do not belong together"):
        unpack(np.zeros((4, 5, 8), np.float32), np.zeros((1, 5, 9), np.complex64), StftSpec(16, 4))
    with pytest.raises(TfxError, match="do not belong together"):
        unpack(np.zeros((2, 5, 7), np.float32), np.zeros((1, 5, 9), np.complex64), StftSpec(16, 4))
