"""Chunks to planes and back: which bins and stems come from the network, which from the mixture."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tfswa.runtime.model.spec import INPUT, OUTPUT, ChunkSpec, ModelSpec, StftSpec
from tfswa.runtime.stream.codec import Codec

SPEC = ModelSpec(
    family="x",
    stems=("vocals", "rest"),
    stft=StftSpec(512, 100, padding="reflect", seen=(0, 257)),
    chunk=ChunkSpec(frames=24, context=4, fade=2, multiple=1),
)


def stems_of(spec: ModelSpec, *gains: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A chunk of noise, and the stems where the network gives these multiples of its input."""
    chunk = np.random.default_rng(0).uniform(-0.5, 0.5, (2, spec.chunk_samples)).astype(np.float32)
    codec = Codec(spec)
    spectra = codec.spectra(chunk[None])
    given = codec.tensors(chunk[None], spectra)
    assert {name: value.shape for name, value in given.items()} == {INPUT: spec.input_shape(1)}
    out = np.stack([np.float32(gain) * given[INPUT][0] for gain in gains])
    return chunk, codec.stems(chunk, spectra[0], {OUTPUT: out})


def changed(**values: Any) -> ModelSpec:
    return dataclasses.replace(SPEC, **values)


def test_the_identity_gives_the_chunk_back() -> None:
    chunk, stems = stems_of(SPEC, 1.0, 0.25)
    np.testing.assert_allclose(stems[0], chunk, atol=2e-6)
    np.testing.assert_allclose(stems[1], 0.25 * chunk, atol=2e-6)


def test_a_network_of_one_stem_makes_two() -> None:
    chunk, stems = stems_of(changed(network_stems=("vocals",), residual_stem="rest"), 0.75)
    np.testing.assert_allclose(stems[1], 0.25 * chunk, atol=2e-6)
    np.testing.assert_allclose(stems.sum(axis=0), chunk, atol=1e-6)


@pytest.mark.parametrize("network_stems", [("vocals",), None])
def test_a_residual_with_a_gain(network_stems: tuple[str, ...] | None) -> None:
    spec = changed(network_stems=network_stems, residual_stem="rest", residual_gain=1.035)
    chunk, stems = stems_of(spec, *(0.6, 9.0)[: len(spec.outputs)])
    np.testing.assert_allclose(stems[1], chunk - np.float32(1.035) * stems[0], atol=1e-5)


def test_stems_may_come_in_another_order() -> None:
    chunk, stems = stems_of(changed(network_stems=("rest", "vocals")), 0.25, 0.75)
    np.testing.assert_allclose(stems[0], 0.75 * chunk, atol=2e-6)
    np.testing.assert_allclose(stems[1], 0.25 * chunk, atol=2e-6)


@pytest.mark.parametrize("unseen", ["vocals", "rest", None])
def test_bins_that_the_network_does_not_see_go_where_the_spec_says(unseen: str | None) -> None:
    narrow = dataclasses.replace(SPEC.stft, seen=(3, 100))
    chunk, stems = stems_of(changed(stft=narrow, unseen_stem=unseen), 1.0, 0.0)
    _, seen_alone = stems_of(changed(stft=narrow, unseen_stem=None), 1.0, 0.0)
    rest = chunk - seen_alone[0]
    assert np.abs(rest).max() > 0.1, "the network must not see all of this noise"
    for name, stem, seen in zip(SPEC.stems, stems, seen_alone, strict=True):
        wanted = seen + rest if name == unseen else seen
        np.testing.assert_allclose(stem, wanted, atol=3e-6)


def test_what_is_zero_below_a_bound_is_the_residuals() -> None:
    stft = dataclasses.replace(SPEC.stft, zero_below=1)
    spec = changed(stft=stft, network_stems=("vocals",), residual_stem="rest")
    codec = Codec(spec)
    chunk = np.full((2, spec.chunk_samples), 0.5, np.float32)  # all of it is near bin 0
    spectra = codec.spectra(chunk[None])
    stems = codec.stems(chunk, spectra[0], {OUTPUT: codec.tensors(chunk[None], spectra)[INPUT]})
    np.testing.assert_allclose(stems.sum(axis=0), chunk, atol=1e-6)
    assert stems[1].mean() > 0.3
