"""What a caller may give as samples, and what each mistake is told."""

from typing import Any

import numpy as np
import pytest

from tfswa.runtime.errors import AudioError, NonFiniteError, UsageError
from tfswa.runtime.stream.overlap import OverlapAdd
from tfswa.runtime.stream.plan import ChunkPlan
from tfswa.runtime.stream.samples import check_samples


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_floats_are_taken_as_float32(kind: Any) -> None:
    given = np.array([[0.5, -1.0], [0.25, 2.0]], kind)
    found = check_samples(given, 2)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, given)
    assert (found is given) == (kind is np.float32)
    assert check_samples([[0.5], [1.0]], 2).shape == (2, 1)


@pytest.mark.parametrize(
    ("samples", "told"),
    [
        (
            np.zeros((2, 5), np.int16),
            r"samples are int16, wanted are floats .*: divide 16-bit samples by 32768",
        ),
        (np.zeros((2, 5), np.int32), r"samples are int32, .* \(int32 of full range by 2147483648\)"),
        (np.zeros((2, 5), np.uint8), r"samples are uint8"),
        (np.zeros((2, 5), bool), "samples are bool"),
        (np.zeros((2, 5), complex), "samples are complex128"),
        (np.zeros((5, 2)), r"samples \[5, 2\] are not \[C, n\] with C = 2: pass samples\.T"),
        (np.zeros(5), r"samples \[5\] are not .* C = 2: pass np\.stack\(\[signal\] \* 2\)"),
        (np.zeros((1, 5)), r"samples \[1, 5\] are not .* C = 2: pass np\.stack"),
        (np.zeros((6, 5)), r"samples \[6, 5\] are not .* C = 2: reshape, or mix down"),
        (np.zeros((1, 2, 5)), r"samples \[1, 2, 5\] are not"),
    ],
)
def test_what_is_no_float_or_has_another_shape_is_named(samples: Any, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        check_samples(samples, 2)


@pytest.mark.parametrize(("value", "name"), [(np.nan, "nan"), (-np.inf, "-inf"), (1e300, r"1e\+300")])
def test_what_is_not_finite_is_said_to_be_the_inputs(value: float, name: str) -> None:
    samples = np.zeros((2, 9))
    samples[1, 4] = value
    engine = OverlapAdd(
        lambda chunks: chunks[:, np.newaxis],
        channels=2,
        stems=("all",),
        plan=ChunkPlan(8, 0, 0, 0),
    )
    engine.push(np.zeros((2, 100)))
    with pytest.raises(AudioError, match=rf"^the input holds {name} at sample 104 of channel 2 of 2"):
        engine.push(samples)
    engine.push(np.zeros((2, 3)))  # nothing was taken, and the signal goes on
    assert engine.flush().shape[-1] <= 103


def test_an_input_beyond_all_scale_is_not_the_networks_fault() -> None:
    engine = OverlapAdd(
        lambda chunks: chunks[:, np.newaxis] * np.float32(1e20),
        channels=1,
        stems=("all",),
        plan=ChunkPlan(8, 0, 0, 0),
    )
    with (
        np.errstate(over="ignore"),
        pytest.raises(NonFiniteError, match=r"chunk 0 .* the input peaks at 1e\+20 there, full scale is 1"),
    ):
        engine.push(np.full((1, 8), 1e20))
