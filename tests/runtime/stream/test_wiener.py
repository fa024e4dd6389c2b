"""The multichannel Wiener filter: against openunmix, and the laws that streams and levels demand."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from specs import SPECS

from tfswa.runtime.errors import NonFiniteError, UsageError
from tfswa.runtime.limits import MOST_WIENER
from tfswa.runtime.model.bundle import Bundle
from tfswa.runtime.model.opening import BundleModel
from tfswa.runtime.model.spec import INPUT, OUTPUT, ChunkSpec, ModelSpec, StftSpec
from tfswa.runtime.stream import separator as separator_module
from tfswa.runtime.stream.codec import Codec
from tfswa.runtime.stream.separator import Separator
from tfswa.runtime.stream.wiener import EPS, PEAK, expectation_maximization, refine

Audio = NDArray[np.float32]

RATE = 8000
PLAIN = ModelSpec(
    "none",
    ("vocals", "drums", "other"),
    stft=StftSpec(512, 128, RATE),
    chunk=ChunkSpec(frames=16, context=2, fade=2, multiple=8),
)
# Both compute in double precision, from the same float32; their determinants are rounded in other ways.
AGREEMENT = 1e-5
# With e the regularization, stems that sum to the mixture x, and a covariance that fits each frame, a bin
# loses at most |x| e / (e + |x|^2 / S), so sqrt(e S) / 2. An average over frames fits less well: four times.
SUM = 4 * np.sqrt(np.sqrt(EPS) * 3) / 2 / PEAK


def complex_noise(*shape: int, seed: int = 0) -> NDArray[np.complex64]:
    made = np.random.default_rng(seed).standard_normal((2, *shape)).astype(np.float32)
    return np.asarray(made[0] + 1j * made[1], np.complex64)


def panned(stems: int, channels: int, frames: int = 40, bins: int = 30) -> NDArray[np.complex64]:
    """Stems ``[S, C, T, K]`` that lie in places of their own, bursts and pauses among them."""
    sources = complex_noise(stems, 1, frames, bins, seed=1)
    sources *= np.random.default_rng(2).uniform(0, 1, sources.shape).astype(np.float32) ** 4
    places = complex_noise(stems, channels, 1, bins, seed=3)
    return sources * places + np.float32(0.05) * complex_noise(stems, channels, frames, bins, seed=4)


def scaled(peak: float, y: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(y * np.float32(peak / np.abs(y.sum(axis=0)).max()))


@pytest.fixture(scope="module")
def filtering() -> ModuleType:
    """The one module of it that is compared; the package itself asks for torchaudio."""
    pytest.importorskip("torch", reason="torch is not installed: openunmix computes with it")
    package = importlib.util.find_spec("openunmix")
    if package is None or not package.submodule_search_locations:
        pytest.skip("openunmix is not installed: pip install --no-deps openunmix")
    path = Path(package.submodule_search_locations[0]) / "filtering.py"
    spec = importlib.util.spec_from_file_location("openunmix_filtering", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TestAgainstThePackage:
    @staticmethod
    def ask(function: Callable[..., Any], y: NDArray[Any], x: NDArray[Any], **options: Any) -> NDArray[Any]:
        """One of its functions, in its layout: ``[T, K, C, 2, S]``, or ``[T, K, C, S]`` where y is real."""
        import torch

        def pairs(z: NDArray[Any]) -> NDArray[np.float64]:
            return np.stack((z.real, z.imag), axis=-1).astype(np.float64)

        given = pairs(y).transpose(2, 3, 1, 4, 0) if np.iscomplexobj(y) else y.transpose(2, 3, 1, 0)
        found = function(torch.tensor(given), torch.tensor(pairs(x).transpose(1, 2, 0, 3)), **options)
        found = (found[0] if isinstance(found, tuple) else found).numpy()
        return np.asarray((found[..., 0, :] + 1j * found[..., 1, :]).transpose(3, 2, 0, 1))

    @pytest.mark.parametrize("channels", [1, 2])
    @pytest.mark.parametrize("stems", [1, 2, 4])
    @pytest.mark.parametrize("iterations", [1, 2, 5])
    def test_the_iterations_agree(
        self, filtering: ModuleType, channels: int, stems: int, iterations: int
    ) -> None:
        y = scaled(PEAK, panned(stems, channels))
        x = y.sum(axis=0)
        y += np.float32(0.2) * complex_noise(*y.shape, seed=9)  # a network's stems do not sum to the mixture
        expected = self.ask(filtering.expectation_maximization, y, x, iterations=iterations)
        found = expectation_maximization(y, x, iterations)
        assert np.abs(found - expected).max() <= AGREEMENT * np.abs(expected).max()
        assert np.abs(expected - y).max() > 0.1, "nothing was moved"

    def test_more_frames_than_it_takes_at_once_agree(self, filtering: ModuleType) -> None:
        y = scaled(PEAK, panned(2, 2, frames=450, bins=3))
        expected = self.ask(filtering.expectation_maximization, y, y.sum(axis=0), iterations=2)
        found = expectation_maximization(y, y.sum(axis=0), 2)
        assert np.abs(found - expected).max() <= AGREEMENT * np.abs(expected).max()

    @pytest.mark.parametrize("residual", [False, True])
    def test_a_chunk_agrees_from_the_networks_stems_to_the_end(
        self, filtering: ModuleType, residual: bool
    ) -> None:
        spec = dataclasses.replace(
            PLAIN,
            stft=StftSpec(58, 29, RATE, seen=(0, 30)),
            residual_stem="other" if residual else None,
            network_stems=("vocals", "drums") if residual else None,
        )
        x = scaled(3000.0, panned(3, 2)).sum(axis=0)  # above PEAK, where it scales as well
        levels = np.abs(scaled(3000.0, panned(len(spec.outputs), 2))).astype(np.float64)
        options = {"softmask": False, "residual": residual, "iterations": 2}
        expected = self.ask(filtering.wiener, levels, x, **options)
        found = refine((levels * np.exp(1j * np.angle(x))).astype(np.complex64), x, spec, 2)
        assert np.abs(found - expected).max() <= AGREEMENT * np.abs(expected).max()


class TestBins:
    """What becomes of a chunk's spectra."""

    @staticmethod
    def refined(spec: ModelSpec, given: NDArray[Any], mixture: NDArray[Any]) -> NDArray[np.complex64]:
        before = given.copy(), mixture.copy()
        found = refine(given, mixture, spec, 2)
        np.testing.assert_array_equal(given, before[0])
        np.testing.assert_array_equal(mixture, before[1])
        assert found.dtype == np.complex64
        return found

    @pytest.mark.parametrize("channels", [1, 2])
    def test_the_sum_is_the_mixture(self, channels: int) -> None:
        spec = dataclasses.replace(PLAIN, stft=StftSpec(58, 29, RATE), channels=channels)
        given = panned(3, channels)
        mixture = given.sum(axis=0)
        found = self.refined(spec, given, mixture)
        seen = slice(0, spec.stft.bins)
        error = np.abs(found.sum(axis=0) - mixture)[..., seen].max()
        assert error <= SUM * np.abs(mixture[..., seen]).max()

    def test_bins_that_are_not_seen_are_handed_through(self) -> None:
        spec = dataclasses.replace(PLAIN, stft=StftSpec(58, 29, RATE, seen=(4, 20)))
        given, mixture = panned(3, 2), complex_noise(2, 40, 30)
        found = self.refined(spec, given, mixture)
        np.testing.assert_array_equal(found[..., :4], given[..., :4])
        np.testing.assert_array_equal(found[..., 24:], given[..., 24:])
        assert np.abs(found - given)[..., 4:24].max() > 0.1

    def test_a_bin_knows_nothing_of_the_others(self) -> None:
        given, mixture = scaled(PEAK, panned(3, 2)), complex_noise(2, 40, 30)
        found = expectation_maximization(given, mixture, 2)
        for k in (0, 13, 29):
            one = expectation_maximization(given[..., k : k + 1], mixture[..., k : k + 1], 2)
            np.testing.assert_allclose(found[..., k : k + 1], one, rtol=1e-9, atol=1e-12)

    def test_silence_and_what_is_a_million_times_too_loud_are_finite(self) -> None:
        spec = dataclasses.replace(PLAIN, stft=StftSpec(58, 29, RATE))
        given, mixture = panned(3, 2), complex_noise(2, 40, 30)
        given[1] = 0
        given[0, :, :, 3] *= np.float32(1e6)
        given[..., 5] = 0
        mixture[..., 7] = 0
        mixture[:, 11:20] = 0
        found = self.refined(spec, given, mixture)
        assert np.isfinite(found).all()
        for silent in (found[1], found[..., :29][..., 5], found[..., 7], found[:, :, 11:20, :29]):
            np.testing.assert_array_equal(silent, 0)
        np.testing.assert_array_equal(self.refined(spec, given, 0 * mixture)[..., :29], 0)

    @pytest.mark.parametrize("name", [name for name, spec in SPECS.items() if len(spec.stems) > 1])
    def test_every_kind_of_model_keeps_its_sum(self, name: str) -> None:
        spec = SPECS[name]
        codec = Codec(spec, wiener=2)
        chunk = noise(spec.chunk_samples, spec.channels)
        (spectrum,) = codec.spectra(chunk[None])
        planes = codec.tensors(chunk[None], [spectrum])[INPUT][0]
        shares = np.linspace(0.2, 0.7, len(spec.outputs), dtype=np.float32)
        stems = codec.stems(chunk, spectrum, {OUTPUT: shares[:, None, None, None] * planes})
        assert stems.shape == (len(spec.stems), *chunk.shape)
        assert np.isfinite(stems).all()
        if spec.residual_stem is not None:  # whatever its gain was: this filter shares all of the mixture
            np.testing.assert_allclose(stems.sum(axis=0), chunk, atol=1e-6)
        elif spec.unseen_stem is not None:
            assert np.abs(stems.sum(axis=0) - chunk).max() < 1e-2 * np.abs(chunk).max()


def noise(samples: int, channels: int = 2, seed: int = 0) -> Audio:
    return (np.random.default_rng(seed).standard_normal((channels, samples)) * 0.1).astype(np.float32)


class Uneven:
    """A session whose stems are parts of the mixture that differ by bin and channel; linear."""

    name, description, reentrant = "uneven", "uneven 1.0", True
    artifact = ("model.safetensors", "0" * 64)
    versions: Mapping[str, str] = {"uneven": "1.0"}
    spoilt = False

    def __init__(self, spec: ModelSpec) -> None:
        _, *shape = spec.output_shape(1)
        shape[2] = 1
        # Quarters are exact, and so is what is made of twice the input.
        self._shares = np.random.default_rng(0).integers(0, 5, shape).astype(np.float32) / 4

    def infer(self, given: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        out = np.stack([plane * self._shares for plane in given[INPUT]])
        if self.spoilt:
            out[0, 1, 0, 5, 7] = np.nan
        return {OUTPUT: out}

    def close(self) -> None:
        """Nothing is held."""


Use = Callable[..., Separator]


@pytest.fixture
def use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Use:
    """``use(wiener=..., batch=..., **spec)``: a separator around a session made here."""

    def make(wiener: int = 2, batch: int = 1, **values: Any) -> Separator:
        spec = dataclasses.replace(PLAIN, **values)
        bundle = Bundle.create(tmp_path / "tiny.tfx", spec, {"w": np.zeros(1, np.float32)}, force=True)
        monkeypatch.setattr(separator_module, "open_session", lambda *_: Uneven(spec))
        return Separator(BundleModel("tiny", bundle), batch=batch, wiener=wiener)

    return make


class TestStreams:
    MIXTURE = noise(2 * RATE + 5)

    def test_without_it_stems_are_the_networks(self, use: Use) -> None:
        with use(wiener=0) as without, use(wiener=1) as once, use(wiener=2) as twice:
            stems = [separator.separate(self.MIXTURE) for separator in (without, once, twice)]
        assert np.abs(stems[1] - stems[0]).max() > 0.01
        assert np.abs(stems[2] - stems[1]).max() > 0.001

    def test_no_bit_depends_on_the_batch_or_on_the_size_of_pushes(self, use: Use) -> None:
        with use(batch=3) as separator:
            expected = separator.separate(self.MIXTURE)
        for size in (1000, 4321):
            with use() as separator:
                stream = separator.stream()
                pieces = [
                    stream.push(self.MIXTURE[:, at : at + size])
                    for at in range(0, self.MIXTURE.shape[1], size)
                ]
                found = np.concatenate((*pieces, stream.flush()), axis=-1)
            np.testing.assert_array_equal(found, expected)

    @pytest.mark.parametrize("residual", [None, "other"])
    @pytest.mark.parametrize("power", [-14, -1, 3])
    def test_a_louder_song_gives_louder_stems_and_no_other_bit(
        self, use: Use, residual: str | None, power: int
    ) -> None:
        with use(residual_stem=residual) as separator:
            expected = separator.separate(self.MIXTURE) * np.float32(2.0**power)
            found = separator.separate(self.MIXTURE * np.float32(2.0**power))
        np.testing.assert_array_equal(found, expected)

    @pytest.mark.parametrize("channels", [1, 2])
    def test_with_a_residual_stem_the_sum_is_exact(self, use: Use, channels: int) -> None:
        mixture = noise(12_345, channels)
        with use(residual_stem="drums", channels=channels) as separator:
            stems = separator.separate(mixture)
        np.testing.assert_allclose(stems.sum(axis=0), mixture, atol=1e-6)

    @pytest.mark.parametrize("residual", [None, "other"])
    def test_silence_is_silence(self, use: Use, residual: str | None) -> None:
        with use(residual_stem=residual) as separator:
            np.testing.assert_array_equal(separator.separate(0 * self.MIXTURE), 0)

    def test_nan_names_the_stem_that_holds_it(self, use: Use) -> None:
        with use() as separator:
            separator.session.spoilt = True  # type: ignore[attr-defined]
            with pytest.raises(NonFiniteError, match=r"^chunk 0 \(samples .*\) of drums holds NaN or Inf"):
                separator.separate(self.MIXTURE)


class TestRefusals:
    def test_a_model_of_one_stem(self, use: Use) -> None:
        line = "^wiener 2 shares the mixture between at least 2 stems, the model has 1, all: leave it out"
        one = {"stems": ("all",), "unseen_stem": "all"}
        with pytest.raises(UsageError, match=line):
            use(**one)
        use(wiener=0, **one).close()

    def test_the_most_is_taken(self, use: Use) -> None:
        use(wiener=MOST_WIENER).close()
