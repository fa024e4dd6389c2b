"""The host's transform as two ONNX graphs: samples to planes, and a network's planes to stems.

For hosts that keep samples on a GPU: they need neither torch nor a Fourier transform of their own. The
windowed transform is a convolution with a stride of one hop, its inverse a transposed one; float32
throughout. The network's graph still holds none of it.

    samples [B, C, N] -> encode.onnx -> mixture [B, 2*C, T, F] -> model.onnx -> stems [B, S, 2*C, T, F]
    stems, samples -> decode.onnx -> audio [B, S, C, N]

Of a network that gives samples too, ``stem_samples [B, S, C, N]``, decode.onnx takes and adds them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from tfswa.export.artifact import bundle_of, check_free, finite_or_none
from tfswa.export.session import cpu_session
from tfswa.runtime.backends.engines import quiet_noise
from tfswa.runtime.errors import ExportError
from tfswa.runtime.metrics import snr_db
from tfswa.runtime.model.opening import METADATA, Model, embed
from tfswa.runtime.model.spec import (
    AUDIO,
    DECODE,
    ENCODE,
    INPUT,
    OUTPUT,
    SAMPLES,
    STEM_SAMPLES,
    ModelSpec,
    StftSpec,
)
from tfswa.runtime.songs.synthetic import synthetic_song
from tfswa.runtime.stream.codec import Codec
from tfswa.runtime.stream.transform import gain_of, window_of

KIND = "transform"
OPSET = 18  # of Pad since 19 the CUDA kernels of ONNX Runtime know nothing: it would run on the CPU
LEAST_DB = 110.0  # against the host's transform, on generated music
BATCH = "batch"


@dataclass(frozen=True)
class Transforms:
    """What ``export_transform`` made.

    Attributes:
        bundle: where they went.
        files: the two graphs.
        snr_db: against the host's transform: of the planes, and of the stems.
        seconds: of the whole export.
    """

    bundle: Path
    files: Sequence[Path]
    snr_db: Mapping[str, float]
    seconds: float


def export_transform(model: Model, *, force: bool = False) -> Transforms:
    """Write ``encode.onnx`` and ``decode.onnx`` of a bundle, compared with the host's transform.

    Args:
        model: a bundle; its network is not needed.
        force: replace graphs that are there.

    Raises:
        UsageError: the model is an exported file.
        OutputExists: a graph is there and ``force`` is False.
        ExportError: a graph is further from the host's transform than 110 dB; nothing is written.
    """
    start = time.perf_counter()
    bundle, spec = bundle_of(model, "export"), model.spec
    for name in (ENCODE, DECODE):
        check_free(bundle, name, force=force)
    graphs = {ENCODE: encode_graph(spec), DECODE: decode_graph(spec)}
    found = transform_snr_db(spec, graphs[ENCODE], graphs[DECODE])
    for what, value in found.items():
        if value < LEAST_DB:
            raise ExportError(
                f"the transform as a graph differs from the host's: {what} SNR {value:.1f} dB, must be "
                f"{LEAST_DB:g} dB; not written"
            )
    carried = embed(spec, "fp32", bundle.digest)
    details = {"opset": OPSET, "snr_db": finite_or_none(found)}
    files = []
    for name, graph in graphs.items():
        graph.metadata_props.add(key=METADATA, value=carried)
        content = graph.SerializeToString(deterministic=True)
        files.append(bundle.add(name, content, kind=KIND, precision="fp32", details=details))
    return Transforms(bundle.home, files, found, time.perf_counter() - start)


def transform_snr_db(spec: ModelSpec, encode: onnx.ModelProto, decode: onnx.ModelProto) -> dict[str, float]:
    """SNR in dB of two graphs against the host's codec, on two chunks of generated music as one batch."""
    samples = 2 * spec.chunk_samples
    song = synthetic_song(spec, (samples + 1) / spec.stft.sample_rate)
    chunks = np.stack(np.split(song.mixture[:, :samples], 2, axis=-1))
    codec = Codec(spec)
    spectra = codec.spectra(chunks)
    planes = codec.tensors(chunks, spectra)[INPUT]
    shares = np.arange(1, len(spec.outputs) + 1, dtype=np.float32) / len(spec.outputs)
    given = {OUTPUT: planes[:, None] * shares[:, None, None, None]}  # no two stems alike
    if spec.samples:
        given[STEM_SAMPLES] = chunks[:, None] * shares[::-1, None, None]
    items = [{name: value[item] for name, value in given.items()} for item in range(len(chunks))]
    right = np.stack([codec.stems(*item) for item in zip(chunks, spectra, items, strict=True)])
    found = cpu_session(encode).run(None, {SAMPLES: chunks})[0]
    stems = cpu_session(decode).run(None, {**given, SAMPLES: chunks})[0]
    pairs = {"planes": (planes, found), "stems": (right, stems)}
    return {what: _snr_db(*pair) for what, pair in pairs.items()}


def transform_answer(spec: ModelSpec, name: str) -> dict[str, NDArray[np.float32]]:
    """What the host's transform makes of ``quiet_noise``: of one item, as ``ENCODE`` or ``DECODE`` does."""
    takes, _ = spec.transforms[name]
    given, codec = quiet_noise(takes), Codec(spec)
    spectra = codec.spectra(given[SAMPLES])
    if name == ENCODE:
        return {INPUT: codec.tensors(given[SAMPLES], spectra)[INPUT][0]}
    return {
        AUDIO: codec.stems(given[SAMPLES][0], spectra[0], {key: value[0] for key, value in given.items()})
    }


def _snr_db(right: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    value = snr_db(right.reshape(1, -1), found.reshape(1, -1))
    return float("inf") if value is None else value


def encode_graph(spec: ModelSpec) -> onnx.ModelProto:
    """``samples [B, C, N] -> mixture [B, 2*C, T, F]``: what the host's transform gives a network."""
    stft, channels, frames = spec.stft, spec.channels, spec.chunk.frames
    first, bins = stft.first_bin, stft.bins
    graph = _Graph()
    spectrum = graph.analysis(SAMPLES, spec, range(first, first + bins))  # [B*C, 2*F, T]
    pairs = graph.add("Reshape", spectrum, graph.shape(-1, channels * 2, bins, frames))
    graph.add("Transpose", pairs, perm=[0, 1, 3, 2], output=INPUT)
    return graph.model("encode", *spec.transforms[ENCODE])


def decode_graph(spec: ModelSpec) -> onnx.ModelProto:
    """A network's ``stems [B, S, 2*C, T, F]`` and the chunk ``samples`` to ``audio [B, S, C, N]`` of all."""
    stft, channels, frames, samples = spec.stft, spec.channels, spec.chunk.frames, spec.chunk_samples
    first, bins, given = stft.first_bin, stft.bins, spec.outputs
    graph = _Graph()
    planes = graph.add("Reshape", OUTPUT, graph.shape(-1, 2, frames, bins))
    used = range(max(first, stft.zero_below), first + bins)
    if used.start > first:  # left out and not multiplied by zero: NaN in them is nobody's
        planes = graph.add("Slice", planes, *map(graph.shape, (used.start - first, bins, 3)))
    rows = graph.add("Transpose", planes, perm=[0, 1, 3, 2])
    rows = graph.add("Reshape", rows, graph.shape(-1, 2 * len(used), frames))  # [B*S*C, 2*F, T]
    seen = graph.synthesis(rows, spec, used)
    whole = graph.add("Reshape", seen, graph.shape(-1, len(given), channels, samples))
    if spec.samples:
        whole = graph.add("Add", whole, STEM_SAMPLES)
    stems = dict(zip(given, graph.split(whole, len(given)), strict=True))  # each [B, 1, C, N]
    mixture = graph.add("Reshape", SAMPLES, graph.shape(-1, 1, channels, samples))
    unseen = [k for k in range(stft.all_bins) if not first <= k < first + bins]
    if spec.unseen_stem in stems and unseen:
        others = graph.synthesis(graph.analysis(SAMPLES, spec, unseen), spec, unseen)
        others = graph.add("Reshape", others, graph.shape(-1, 1, channels, samples))
        stems[spec.unseen_stem] = graph.add("Add", stems[spec.unseen_stem], others)
    if spec.residual_stem is not None:
        rest = [stems[name] for name in given if name != spec.residual_stem]
        total = (
            graph.add("Sum", *rest) if rest else graph.add("Mul", mixture, graph.constant(np.float32(0.0)))
        )
        total = graph.add("Mul", total, graph.constant(np.float32(spec.residual_gain)))
        stems[spec.residual_stem] = graph.add("Sub", mixture, total)
    graph.add("Concat", *(stems[name] for name in spec.stems), axis=1, output=AUDIO)
    return graph.model("decode", *spec.transforms[DECODE])


@dataclass
class _Graph:
    """An ONNX graph as it grows; values are named by number."""

    nodes: list[Any] = field(default_factory=list)
    constants: dict[str, NDArray[Any]] = field(default_factory=dict)

    def add(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Add a node; return the name of its output."""
        name = output or f"v{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(kind, inputs, [name], name=f"{kind}_{name}", **attributes))
        return name

    def constant(self, value: NDArray[Any] | np.float32) -> str:
        """Add a constant; return its name."""
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(value)
        return name

    def shape(self, *sizes: int) -> str:
        """A shape as a constant."""
        return self.constant(np.array(sizes, np.int64))

    def split(self, value: str, parts: int) -> list[str]:
        """Along axis 1, into parts of one."""
        names = [f"s{len(self.nodes)}_{part}" for part in range(parts)]
        node = onnx.helper.make_node(
            "Split", [value], names, name=f"Split_{names[0]}", axis=1, num_outputs=parts
        )
        self.nodes.append(node)
        return names

    def analysis(self, samples: str, spec: ModelSpec, bins: Sequence[int]) -> str:
        """``[B, C, N] -> [B*C, 2*K, T]``: real parts of these bins, then imaginary ones."""
        stft, length = spec.stft, spec.chunk_samples
        before, after = stft.outside(length)
        single = self.add("Reshape", samples, self.shape(-1, 1, length))
        if stft.padding == "reflect":  # by its places, since what is mirrored may be longer than the chunk
            filled = single
            if stft.fill:
                ends = self.constant(np.array([0, 0, 0, 0, 0, stft.fill], np.int64))
                filled = self.add("Pad", single, ends)
            places = np.pad(np.arange(length + stft.fill), (before, after - stft.fill), "reflect")
            padded = self.add("Gather", filled, self.constant(places), axis=2)
        else:
            padded = self.add("Pad", single, self.constant(np.array([0, 0, before, 0, 0, after], np.int64)))
        weights = _analysis_weights(stft, bins)
        return self.add("Conv", padded, self.constant(weights), strides=[stft.hop])

    def synthesis(self, rows: str, spec: ModelSpec, bins: Sequence[int]) -> str:
        """``[M, 2*K, T] -> [M, 1, N]``: the overlap-add, divided by the sum of squared windows."""
        stft, length = spec.stft, spec.chunk_samples
        before, _ = stft.outside(length)
        weights = self.constant(_synthesis_weights(stft, bins))
        total = self.add("ConvTranspose", rows, weights, strides=[stft.hop])
        ends = [self.constant(np.array([value], np.int64)) for value in (before, before + length, 2)]
        inside = self.add("Slice", total, *ends)
        return self.add(
            "Mul", inside, self.constant(gain_of(stft, spec.chunk.frames)[before : before + length])
        )

    def model(
        self, name: str, inputs: Mapping[str, Sequence[int]], outputs: Mapping[str, Sequence[int]]
    ) -> onnx.ModelProto:
        """The whole, checked."""
        held = [onnx.numpy_helper.from_array(value, key) for key, value in self.constants.items()]
        graph = onnx.helper.make_graph(self.nodes, name, _ends(inputs), _ends(outputs), held)
        opsets = [onnx.helper.make_opsetid("", OPSET)]
        model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
        model.producer_name, model.producer_version = "tfx", version("tfswa")
        onnx.checker.check_model(model, full_check=True)
        return model


def _ends(shapes: Mapping[str, Sequence[int]]) -> list[onnx.ValueInfoProto]:
    kind = onnx.TensorProto.FLOAT
    return [onnx.helper.make_tensor_value_info(end, kind, [BATCH, *shape]) for end, shape in shapes.items()]


def _angles(stft: StftSpec, bins: Sequence[int]) -> NDArray[np.float64]:
    """2 pi k n / n_fft, ``[K, n_fft]``; k * n is reduced first, so that large ones lose no digits."""
    turns = np.outer(np.asarray(bins), np.arange(stft.n_fft)) % stft.n_fft
    angles: NDArray[np.float64] = 2.0 * np.pi * turns / stft.n_fft
    return angles


def _analysis_weights(stft: StftSpec, bins: Sequence[int]) -> NDArray[np.float32]:
    """Windowed cosines, then negative sines: ``[2*K, 1, n_fft]``."""
    angles = _angles(stft, bins)
    waves = np.concatenate((np.cos(angles), -np.sin(angles))) * window_of(stft) * stft.scale
    return waves[:, None].astype(np.float32)


def _synthesis_weights(stft: StftSpec, bins: Sequence[int]) -> NDArray[np.float32]:
    """What a real and an imaginary part add to a frame: ``[2*K, 1, n_fft]``."""
    angles, numbers = _angles(stft, bins), np.asarray(bins)
    twice = np.where((numbers == 0) | (numbers == stft.n_fft // 2), 1.0, 2.0)
    both = np.tile(twice / stft.n_fft / stft.scale, 2)[:, None]
    waves = np.concatenate((np.cos(angles), -np.sin(angles))) * window_of(stft) * both
    return waves[:, None].astype(np.float32)
