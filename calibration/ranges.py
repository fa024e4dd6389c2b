"""Ranges of activations: what the 8-bit numbers of each layer's input are to reach.

Chunks go through the float32 graph one by one. Of every tensor its exact extremes are kept, and a histogram
of magnitudes from evenly spaced samples; both are taken inside the graph, so that memory does not grow with
the audio, nor with the network. From a histogram each method derives a range in a moment.
"""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from tfswa.export.quantize import LEVELS, item_shapes, layers
from tfswa.export.session import cpu_session
from tfswa.runtime.errors import NonFiniteError
from tfswa.runtime.files import caches
from tfswa.runtime.model.bundle import writable
from tfswa.runtime.model.spec import INPUT, ModelSpec

Counts = NDArray[Any]

BINS = 4096  # of a histogram; at least half of them are in use
SAMPLES = 1 << 14  # of a tensor, of each chunk
PERCENTILE = 99.99
KL_BINS = 128  # that 8-bit magnitudes leave
MSE_STEPS = np.geomspace(0.02, 1.0, 64)  # ranges that are tried, of the largest magnitude

_OUTPUTS = ("peak", "sum", "samples")  # of each tensor
_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError),
    *(KeyError, TypeError, ValueError),
)


class Collector:
    """What is known of a graph's activations so far; it can be saved and taken up again.

    Args:
        graph: float32, shapes inferred.
        spec: the model's contract.

    Attributes:
        tensors: names of what is collected, in the graph's order.
        chunks: how many were seen.
        counts: histograms of magnitudes, ``[tensors, BINS]``.
        shares: the same, each chunk's divided by the energy that it holds: how much of a chunk's own energy
            an error is does not depend on how loud the chunk was.
        widths: of a bin, ``[tensors]``; powers of two, 0 where nothing but zeros was seen.
        peaks: largest magnitudes, ``[tensors]``.
    """

    def __init__(self, graph: onnx.ModelProto, spec: ModelSpec):
        self._layers = layers(graph)
        self.tensors = list(dict.fromkeys(layer.activation for layer in self._layers))
        self.chunks = 0
        self.counts: Counts = np.zeros((len(self.tensors), BINS), np.int64)
        self.shares = np.zeros((len(self.tensors), BINS))
        self.widths = np.zeros(len(self.tensors))
        self.peaks = np.zeros(len(self.tensors))
        # In order, reductions beside what they reduce, or every activation would be kept.
        self._session = cpu_session(_instrumented(graph, self.tensors), in_order=True)

    def add(self, planes: NDArray[np.float32]) -> None:
        """Take in a chunk.

        Args:
            planes: ``[1, 2*C, T, F]``.

        Raises:
            NonFiniteError: an activation is NaN or Inf.
        """
        found = self._session.run(None, {INPUT: planes})
        peaks, sums, samples = found[0::3], found[1::3], found[2::3]
        for name, peak, total in zip(self.tensors, peaks, sums, strict=True):
            if not (math.isfinite(peak) and math.isfinite(total)):  # a maximum passes over NaN
                raise NonFiniteError(f"{name} is not finite in float32: there is no range for it")
        for index, (peak, sampled) in enumerate(zip(peaks, samples, strict=True)):
            self._widen(index, float(peak))
            if self.widths[index]:
                places = np.minimum((np.abs(sampled) / self.widths[index]).astype(np.int64), BINS - 1)
                found_here = np.bincount(places, minlength=BINS)
                self.counts[index] += found_here
                energy = float(np.square(sampled, dtype=np.float64).sum())
                if energy > 0:
                    self.shares[index] += found_here / energy
        self.chunks += 1

    def ranges(self, method: str) -> dict[str, float]:
        """The range of each layer's input by a method, one of ``METHODS``.

        What a layer is always given as zero has the range 1: any will do.
        """
        choose = METHODS[method]
        histograms = self.shares if method in BY_CHUNK else self.counts
        by_tensor = {
            name: choose(histograms[index], float(self.widths[index]), float(self.peaks[index]))
            if self.peaks[index] > 0
            else 1.0
            for index, name in enumerate(self.tensors)
        }
        return {layer.name: by_tensor[layer.activation] for layer in self._layers}

    def save(self, path: Path) -> None:
        """Write what is known, whole or not at all."""
        with writable(path):
            content = io.BytesIO()
            np.savez(content, **self._state())
            caches.put(path, content.getvalue())

    def resume(self, path: Path) -> bool:
        """Take up what ``save`` wrote; False where there is nothing, or nothing that fits."""
        found = caches.recall(path)
        if found is None:
            return False
        try:
            with np.load(io.BytesIO(found), allow_pickle=False) as kept:
                state = {name: kept[name] for name in self._state()}
        except _DAMAGE:  # by another tfx
            return False
        if state["tensors"].tolist() != self.tensors or state["counts"].shape != self.counts.shape:
            return False
        self.chunks, self.counts, self.shares = int(state["chunks"]), state["counts"], state["shares"]
        self.widths, self.peaks = state["widths"], state["peaks"]
        return True

    def _state(self) -> dict[str, Any]:
        return {
            "tensors": np.array(self.tensors),
            "chunks": np.array(self.chunks),
            "counts": self.counts,
            "shares": self.shares,
            "widths": self.widths,
            "peaks": self.peaks,
        }

    def _widen(self, index: int, peak: float) -> None:
        """Make room for a magnitude: bins are merged by twos, which moves no sample across an edge."""
        self.peaks[index] = max(self.peaks[index], peak)
        if peak <= 0:
            return
        if not self.widths[index]:
            self.widths[index] = 2.0 ** math.ceil(math.log2(peak / BINS))
        while peak > self.widths[index] * BINS:
            for histograms in (self.counts, self.shares):
                merged = histograms[index].reshape(-1, 2).sum(axis=1)
                histograms[index] = np.concatenate((merged, np.zeros_like(merged)))
            self.widths[index] *= 2


def minmax(counts: Counts, width: float, peak: float) -> float:
    """The largest magnitude: nothing is clipped."""
    return peak


def percentile(counts: Counts, width: float, peak: float) -> float:
    """The magnitude that ``PERCENTILE`` of the samples do not exceed."""
    below = np.cumsum(counts)
    place = int(np.searchsorted(below, PERCENTILE / 100 * below[-1]))
    return min(peak, (place + 1) * width)


def entropy(counts: Counts, width: float, peak: float) -> float:
    """The range whose 8-bit histogram has the least Kullback-Leibler divergence from the whole one.

    As published by NVIDIA for TensorRT (Migacz, "8-bit inference with TensorRT", GTC 2017).
    """
    used = min(BINS, math.ceil(peak / width))
    whole = counts[:used].astype(np.float64)
    ends = range(min(KL_BINS, used), used + 1, max(1, used // 256))
    best = min(ends, key=lambda end: _divergence(whole, end))
    return min(peak, best * width)


def mse(counts: Counts, width: float, peak: float) -> float:
    """The range with the least mean square error: of rounding inside it, and of clipping outside."""
    used = np.flatnonzero(counts)
    if not len(used):
        return peak
    values, weights = (used + 0.5) * width, counts[used]

    def error(limit: float) -> float:
        scale = limit / LEVELS
        rounded = np.minimum(np.rint(values / scale), LEVELS) * scale
        # Within a bin nothing is known of the values; the error of rounding is that of a uniform one.
        inside = np.where(values <= limit, np.maximum((values - rounded) ** 2, scale**2 / 12), 0.0)
        outside = np.where(values > limit, (values - limit) ** 2, 0.0)
        return float(weights @ (inside + outside))

    return min((float(step) * peak for step in MSE_STEPS), key=error)


BY_CHUNK = frozenset(("relative",))  # methods to which every chunk counts alike, however loud
METHODS: Mapping[str, Callable[[Counts, float, float], float]] = {
    "minmax": minmax,
    "percentile": percentile,
    "entropy": entropy,
    "mse": mse,
    "relative": mse,
}


def _divergence(whole: NDArray[np.float64], end: int) -> float:
    """Kullback-Leibler divergence of a histogram clipped at ``end`` from its 8-bit form."""
    clipped = whole[:end].copy()
    filled = clipped > 0
    clipped[-1] += whole[end:].sum()
    edges = np.linspace(0, end, min(KL_BINS, end) + 1).astype(int)
    sums = np.add.reduceat(whole[:end], edges[:-1])
    live = np.add.reduceat(filled.astype(np.float64), edges[:-1])
    level = np.repeat(sums / np.maximum(live, 1), np.diff(edges)) * filled
    right, coarse = clipped.sum(), level.sum()
    if coarse == 0:
        return math.inf
    both = (clipped > 0) & (level > 0)
    lost = clipped[(clipped > 0) & ~both].sum() / right  # mass where the coarse form has none
    p, q = clipped[both] / right, level[both] / coarse
    return float((p * np.log(p / q)).sum() + lost * math.log(1e6))


def _instrumented(graph: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    """A graph whose outputs are, for each tensor, its largest magnitude, the sum of all, and samples."""
    made = onnx.ModelProto()
    made.CopyFrom(graph)
    sizes = {name: math.prod(shape) for name, shape in item_shapes(graph).items()}
    wanted = set(tensors)
    del made.graph.node[:], made.graph.output[:]
    constants = {f"tfx_{value}": [value] for value in (0, -1)}
    for name in [value.name for value in graph.graph.input if value.name in wanted]:
        made.graph.node.extend(_reduced(name, sizes[name], constants))
    for node in graph.graph.node:
        made.graph.node.append(node)
        for name in wanted.intersection(node.output):  # beside what they reduce, so that it can be freed
            made.graph.node.extend(_reduced(name, sizes[name], constants))
    for name in tensors:
        for output in _OUTPUTS:
            info = onnx.helper.make_tensor_value_info(f"{name}_tfx_{output}", onnx.TensorProto.FLOAT, None)
            made.graph.output.append(info)
    made.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.array(value, np.int64), name) for name, value in constants.items()
    )
    return made


def _reduced(name: str, size: int, constants: dict[str, list[int]]) -> list[onnx.NodeProto]:
    """The outputs of one tensor; the numbers that they take are added to ``constants``."""
    make = onnx.helper.make_node
    step = max(1, size // SAMPLES) | 1  # odd: not along one column of a tensor of even sizes
    constants |= {f"tfx_{step}": [step], f"tfx_{size}": [size]}
    return [
        make("ReduceMax", [name], [f"{name}_tfx_high"], keepdims=0),
        make("ReduceMin", [name], [f"{name}_tfx_low"], keepdims=0),
        make("Neg", [f"{name}_tfx_low"], [f"{name}_tfx_below"]),
        make("Max", [f"{name}_tfx_high", f"{name}_tfx_below"], [f"{name}_tfx_peak"]),
        make("ReduceL1", [name], [f"{name}_tfx_sum"], keepdims=0),
        make("Reshape", [name, "tfx_-1"], [f"{name}_tfx_line"]),
        make(
            "Slice",
            [f"{name}_tfx_line", "tfx_0", f"tfx_{size}", "tfx_0", f"tfx_{step}"],
            [f"{name}_tfx_samples"],
        ),
    ]
