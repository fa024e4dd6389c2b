"""A session at work: what a library raises becomes a line of ours, a fault of our own does not."""

import numpy as np
import pytest
from parity_fakes import Fixed

from tfswa.runtime.backends import BackendOptions, open_session, resolved, running
from tfswa.runtime.errors import BackendUnavailable, NonFiniteError, UsageError
from tfswa.runtime.model.spec import INPUT

GIVEN = {INPUT: np.zeros((4, 1, 1, 1), np.float32)}


class LibraryError(Exception):
    """As a library written in C++ raises it."""

    __module__ = "onnxruntime.capi.onnxruntime_pybind11_state"


def raising(error: Exception) -> Fixed:
    session = Fixed()

    def infer(_: object) -> None:
        raise error

    session.infer = infer  # type: ignore[assignment,method-assign]
    return session


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried to allocate 2 GiB\nand more"),
        LibraryError("[ONNXRuntimeError] : 6 : std::bad_alloc"),
        LibraryError("Failed to allocate memory for requested buffer of size 6291456"),
    ],
)
def test_memory_that_runs_out_names_backend_and_batch(error: Exception) -> None:
    with pytest.raises(BackendUnavailable, match=r"^backend fixed ran out of memory .* 4: --batch 2 takes"):
        running.infer(raising(error), GIVEN)


@pytest.mark.parametrize("error", [RuntimeError("no kernel\nat line 7"), LibraryError("no kernel")])
def test_what_a_library_says_is_told_in_one_line(error: Exception) -> None:
    with pytest.raises(BackendUnavailable, match=r"^backend fixed failed .* 4 \(no kernel\): use another"):
        running.infer(raising(error), GIVEN)


@pytest.mark.parametrize("error", [TypeError("ours"), NonFiniteError("as it is")])
def test_the_rest_is_left_as_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        running.infer(raising(error), GIVEN)
    assert caught.value is error


@pytest.mark.parametrize(
    ("options", "meant"),
    [
        (BackendOptions("half"), "precision 'half', did you mean 'fp16'"),
        (BackendOptions("FP16"), "precision 'FP16', did you mean 'fp16'"),
        (BackendOptions("bfloat16"), "precision 'bfloat16', did you mean 'bf16'"),
        (BackendOptions(device="gpu"), "device 'gpu', did you mean 'cuda'"),
        (BackendOptions(device="GPU:1"), "device 'GPU', did you mean 'cuda'"),
    ],
)
def test_slips_of_the_pen_are_answered(options: BackendOptions, meant: str) -> None:
    with pytest.raises(UsageError, match=meant):
        resolved(object(), options)  # type: ignore[arg-type]


def test_a_plug_ins_own_words_are_its_own() -> None:
    options = BackendOptions("fp8", "npu:0")
    assert resolved(object(), options) == options  # type: ignore[arg-type]


def test_an_unknown_backend_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"unknown backend 'opnvino', did you mean 'openvino'\? choose"):
        open_session("opnvino", object(), BackendOptions())  # type: ignore[arg-type]
