"""A small network like MDX-Net, written as an ONNX file node by node, as UVR's are; and UVR's way through it.

TFC-TDF: convolutions with normalization, a product along the bins, one level down and up again, and a skip
that multiplies. Weights are random; its output is about as loud as its input.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

BINS, FRAMES = 48, 16
N_FFT, HOP, RATE = 128, 32, 8000
STFT = (f"n_fft={N_FFT}", f"hop={HOP}", f"sample_rate={RATE}")
Planes = NDArray[np.float32]


def write_mdx(
    path: Path,
    *,
    planes: int = 4,
    bins: int = BINS,
    frames: int = FRAMES,
    gives: int | None = None,
    opset: int = 13,
    batch: str | int = "batch_size",
    sizes: bool = True,
    seed: int = 0,
    bad: Callable[[Any], None] = lambda model: None,
) -> Path:
    """Write the file.

    Args:
        path: where.
        planes: that it takes and gives.
        bins: dim_f.
        frames: dim_t.
        gives: planes that it gives, where that is another number.
        opset: version of its operators, 9 to 13.
        batch: size of the first axis, or its name.
        sizes: whether the file says bins and frames.
        seed: of the weights.
        bad: what else to do to the model.
    """
    import onnx
    from onnx import helper, numpy_helper

    random = np.random.default_rng(seed)
    held, nodes = [], []
    wide = 6

    def weight(name: str, *shape: int, gain: float = 1.0) -> str:
        share = gain / math.sqrt(math.prod(shape[1:]))
        held.append(numpy_helper.from_array((random.standard_normal(shape) * share).astype(np.float32), name))
        return name

    def node(kind: str, *taken: str, **attributes: Any) -> str:
        name = f"{kind}_{len(nodes)}"
        nodes.append(helper.make_node(kind, taken, [f"v{len(nodes)}"], name=name, **attributes))
        return str(nodes[-1].output[0])

    def normalized(value: str, channels: int, name: str) -> str:
        parts = {"scale": (1.0, 0.1), "bias": (0.0, 0.05), "mean": (0.0, 0.1), "var": (1.0, 0.2)}
        for part, (middle, spread) in parts.items():
            numbers = np.abs(middle + spread * random.standard_normal(channels)) if part == "var" else None
            numbers = middle + spread * random.standard_normal(channels) if numbers is None else numbers
            held.append(numpy_helper.from_array(numbers.astype(np.float32), f"{name}.{part}"))
        return node("BatchNormalization", value, *(f"{name}.{part}" for part in parts), epsilon=1e-5)

    def block(value: str, size: int, name: str) -> str:
        value = node("Conv", value, weight(f"{name}.conv", wide, wide, 3, 3), pads=[1, 1, 1, 1])
        value = node("Relu", normalized(value, wide, f"{name}.tfc"))
        inner = node("MatMul", value, weight(f"{name}.linear", size, size))
        return node("Add", value, node("Relu", normalized(inner, wide, f"{name}.tdf")))

    stem = node("Conv", "input", weight("first", wide, planes, 1, 1))
    stem = node("Transpose", stem, perm=[0, 1, 3, 2])
    skip = block(stem, bins, "encoder")
    down = weight("down", wide, wide, 2, 2)
    inner = block(node("Conv", skip, down, strides=[2, 2], kernel_shape=[2, 2]), bins // 2, "middle")
    up = node("ConvTranspose", inner, weight("up", wide, wide, 2, 2), strides=[2, 2], kernel_shape=[2, 2])
    half = helper.make_tensor("half", onnx.TensorProto.FLOAT, [], [0.5])
    shrunk = node("Mul", up, node("Constant", value=half))
    product = node("Mul", node("Tanh", shrunk), skip)
    value = node("Transpose", block(product, bins, "decoder"), perm=[0, 1, 3, 2])
    nodes.append(
        helper.make_node(
            "Conv",
            [value, weight("last", gives or planes, wide, 1, 1, gain=30.0)],
            ["output"],
            name="Conv_last",
        )
    )
    size = [bins, frames] if sizes else ["bins", "frames"]
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [batch, count, *size])
        for name, count in (("input", planes), ("output", gives or planes))
    ]
    graph = helper.make_graph(nodes, "torch_jit", ends[:1], ends[1:], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=6)
    bad(model)
    path.write_bytes(model.SerializeToString())
    return path


def uvr_way(
    path: Path, mixture: Planes, *, n_fft: int, hop: int, bins: int = BINS, frames: int = FRAMES
) -> NDArray[np.float64]:
    """The stem of a mixture ``[2, N]`` as UVR makes it, in chunks that leave whole frames out at either end.

    torch.stft and torch.istft; nothing of tfx. UVR leaves out n_fft / 2 samples, which are whole frames for
    all but an n_fft of 5120 and 7680.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    window = torch.hann_window(n_fft, periodic=True, dtype=torch.float64)
    trim = math.ceil(n_fft / 2 / hop) * hop
    chunk = hop * (frames - 1)
    kept = chunk - 2 * trim
    samples = mixture.shape[1]
    pad = kept - samples % kept
    padded = np.concatenate([np.zeros((2, trim)), mixture, np.zeros((2, pad)), np.zeros((2, trim))], axis=1)
    parts = []
    for start in range(0, samples + pad, kept):
        piece = torch.from_numpy(padded[:, start : start + chunk])
        spectrum = torch.stft(
            piece, n_fft, hop, window=window, center=True, pad_mode="reflect", return_complex=True
        )
        planes = torch.view_as_real(spectrum).permute(0, 3, 1, 2).reshape(4, n_fft // 2 + 1, frames)
        taken = planes[:, :bins].numpy().astype(np.float32)
        taken[:, :3] = 0.0
        given = session.run(None, {"input": taken[None]})[0][0].astype(np.float64)
        whole = np.pad(given, ((0, 0), (0, n_fft // 2 + 1 - bins), (0, 0))).reshape(2, 2, -1, frames)
        back = torch.complex(*(torch.from_numpy(whole[:, part]) for part in (0, 1)))
        sound = torch.istft(back, n_fft, hop, window=window, center=True, length=chunk).numpy()
        parts.append(sound[:, trim : trim + kept])
    stem: NDArray[np.float64] = np.concatenate(parts, axis=1)[:, :samples]
    return stem
