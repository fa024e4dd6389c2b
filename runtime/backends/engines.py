"""What building engines and running them share: libraries, targets, and the self-test.

Every engine lies in a bundle beside the answer that it must give::

    engines/<key>.engine      built from an ONNX graph
    engines/<key>.npy         samples of what the eager float32 network makes of ``probe``
    engines/<key>.json        what the key is the hash of, to be read

The probe is computed and not stored, so that an answer takes a few kilobytes.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.metrics import likeness_db
from tfswa.runtime.model.spec import AUDIO, INPUT, ModelSpec, Shapes

MODULES = {"rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}  # by flavor
PORTABLE = "portable"  # target of an engine that is not bound to one GPU
CAPABILITY = "compute capability "

ENGINE, ANSWER, KEY = "engine", "answer", "engine key"  # kinds of files
TRANSFORM = "transform engine"  # kind of an engine of encode.onnx or decode.onnx
SAMPLES = 4096  # of an answer; a few thousand tell one network from another

QUIET = np.float32(25.0)  # of 256, the peak of what is no plane
_PEAK = 4.0  # of the probe; music of full scale peaks near 32, most of it lies below 1

logger = logging.getLogger(__name__)


def answer_of(engine: str) -> str:
    """Name of the file that holds an engine's answer."""
    return engine.removesuffix(".engine") + ".npy"


def probe(spec: ModelSpec) -> dict[str, NDArray[np.float32]]:
    """What a network is given in the self-test: a chunk of ``probe_planes``, and quiet noise of all else.

    That is in steps of 1/256, which float16 holds: an engine may take state in it.
    """
    return {**quiet_noise(spec.takes), INPUT: probe_planes(spec)}


def quiet_noise(takes: Shapes) -> dict[str, NDArray[np.float32]]:
    """The probe of a graph of the transform, and of all but planes of a network."""
    return {name: np.rint(QUIET * _noise((1, *shape))) / np.float32(256.0) for name, shape in takes.items()}


def probe_planes(spec: ModelSpec) -> NDArray[np.float32]:
    """Planes of the self-test: harmonics and bursts, filled with noise; the same bits on every machine.

    It has to look like music: a network that finds neither voices nor beats gives nearly its input back,
    whatever its weights are. (The embedded model, its weights 2 % off, still reaches 77 dB on plain noise,
    39 dB on this and on music.)

    Returns:
        float32 ``[1, 2*C, T, F]``.
    """
    shape = spec.input_shape(1)
    noise = _noise(shape)
    frames, bins = np.arange(shape[2])[:, np.newaxis], np.arange(shape[3])
    pitch = 20 + frames // 16 * 3 % 17  # in bins; another every 16 frames
    sounds = (bins % pitch < 2) | (frames % 24 < 3)
    level = np.where(sounds, np.float32(_PEAK), np.float32(_PEAK * 0.01))
    fall = 1.0 + 15.0 * bins.astype(np.float32) / np.float32(shape[3])
    return (noise * level / fall).astype(np.float32)


def _noise(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Numbers from -1 to 1. Whole ones are mixed as in the finalizer of MurmurHash3 (A. Appleby, 2008).

    No random generator promises its numbers for ever.
    """
    mixed = np.arange(math.prod(shape), dtype=np.uint32)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        mixed ^= mixed >> np.uint32(shift)
        mixed *= np.uint32(factor)
    mixed ^= mixed >> np.uint32(16)
    noise: NDArray[np.float32] = mixed.reshape(shape).astype(np.float32) * np.float32(2.0**-31)
    return noise - np.float32(1.0)


def samples(item: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    """Evenly strided samples of what a network gave of one item: of one tensor after the other, ``[n]``.

    The stride is odd, so that it meets all bins of a power of two. Sound is taken stem by stem: the mixture
    in one of them may be far louder than what the network gave of the others.
    """
    return np.concatenate(_sampled(item))


def answer_likeness_db(answer: NDArray[np.float32], item: Mapping[str, NDArray[Any]]) -> float:
    """How near a network's item is to an answer of as many samples: the worst SNR of a part, in dB."""
    parts = _sampled(item)
    rights = np.split(answer, np.cumsum([part.size for part in parts])[:-1])
    return min(likeness_db(right, part) for right, part in zip(rights, parts, strict=True))


def _sampled(item: Mapping[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
    parts = [part for name, value in item.items() for part in (value if name == AUDIO else (value,))]
    flats = [np.ascontiguousarray(part, np.float32).reshape(-1) for part in parts]
    return [flat[:: max(1, flat.size // SAMPLES) | 1] for flat in flats]


@functools.cache
def library_logger(library: Any) -> Any:
    """The one logger of a library: it keeps the first that it is given for as long as the process lives.

    Its ``errors`` are the lines that the library gave for errors; who begins something clears them. A warning
    is passed on once: builders repeat theirs for every layer.
    """

    class Log(library.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self.errors: list[str] = []
            self.warned: set[str] = set()

        def log(self, severity: Any, message: str) -> None:
            if severity in (library.ILogger.INTERNAL_ERROR, library.ILogger.ERROR):
                self.errors.append(" ".join(message.split()))
            elif severity == library.ILogger.WARNING and message not in self.warned:
                self.warned.add(message)
                logger.warning("%s: %s", library.__name__, message)

    return Log()


def errors_of(library: Any) -> str:
    """What a library has said since its errors were cleared, in one line."""
    return "; ".join(library_logger(library).errors) or "no reason given"
