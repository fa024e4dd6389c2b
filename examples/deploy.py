"""Separate a song with an exported graph, numpy, SciPy and onnxruntime: nothing of tfx is imported.

python examples/deploy.py model.onnx song.wav OUT_FOLDER
"""

import json
import math
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import scipy.fft
import soundfile

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
spec = json.loads(session.get_modelmeta().custom_metadata_map["tfx"])["spec"]
# What a file of spec version 1 does not say has these values.
spec = {"network_stems": None, "residual_gain": 1, "unseen_stem": spec.get("nyquist_stem")} | spec
stft = {"window": "hann", "padding": "zero", "offset": 0, "seen": None, "zero_below": 0} | spec["stft"]
chunk, stems, given = spec["chunk"], spec["stems"], spec["network_stems"] or spec["stems"]
n_fft, hop, offset, scale = stft["n_fft"], stft["hop"], stft["offset"], stft["scale"]
first, count = stft["seen"] or (0, n_fft // 2)  # the bins that the network sees
window = np.sin(np.pi * np.arange(n_fft) / n_fft) ** 2 if stft["window"] == "hann" else np.ones(n_fft)
fill = stft.get("fill", 0)  # zeros behind a chunk
more = math.ceil(n_fft / hop) if stft.get("endless") else 0  # frames beside a chunk that count in the sum
length = (chunk["frames"] - 1) * hop + 2 * offset - fill - chunk.get("short", 0)
context, fade = chunk["context"] * hop, chunk["fade"] * hop
after = context if chunk.get("context_after") is None else chunk["context_after"] * hop
kept = length - context - after  # samples of a chunk that are used
step = kept - fade
margin = n_fft // 2 - offset  # samples before the chunk that the first frame covers, and behind it the last
behind = (chunk["frames"] - 1) * hop + n_fft - margin - length - fill
# What a causal network hands from chunk to chunk: zeros before the first.
state = {f"state.{name}": np.zeros((1, *size), np.float32) for name, size in spec.get("state", {}).items()}
gives = [output.name for output in session.get_outputs()]


def separate_chunk(piece):  # [C, length] -> [S, C, length]
    mode = {"zero": "constant", "reflect": "reflect"}[stft["padding"]]
    filled = np.pad(piece, ((0, 0), (0, fill)))
    padded = np.pad(filled, ((0, 0), (margin, behind)), mode)
    frames = np.lib.stride_tricks.sliding_window_view(padded, n_fft, axis=1)[:, ::hop]  # [C, T, n_fft]
    # SciPy in float32, window times scale: the same bits as in tfx. NumPy rounds otherwise: 12 dB less.
    spectrum = scipy.fft.rfft(frames * (window * scale).astype(np.float32))  # [C, T, n_fft / 2 + 1]
    bins = spectrum[..., first : first + count]
    planes = np.stack((bins.real, bins.imag), axis=1).reshape(1, -1, *bins.shape[1:])  # [1, 2*C, T, F]
    branch = {"samples": piece[np.newaxis]} if spec.get("samples") else {}  # networks that take them too
    found = session.run(gives, {"mixture": planes.astype(np.float32), **branch, **state})
    found = dict(zip(gives, found, strict=True))
    state.update({name: found[name.replace("state", "next", 1)] for name in state})
    out = found["stems"][0].astype(np.float64)
    out = out.reshape(len(given), -1, 2, *bins.shape[1:])  # [S, 2*C, T, F] -> [S, C, 2, T, F]
    full = np.zeros((len(stems), *spectrum.shape), complex)
    if spec["unseen_stem"] in given:  # the bins that the network does not see are the mixture's
        full[stems.index(spec["unseen_stem"])] = spectrum
    for name, planes in zip(given, out, strict=True):
        full[stems.index(name), ..., first : first + count] = planes[:, 0] + 1j * planes[:, 1]
        full[stems.index(name), ..., first : max(first, stft["zero_below"])] = 0
    pieces = np.fft.irfft(full, n_fft) * window / scale
    total, weight = np.zeros((*pieces.shape[:2], padded.shape[1])), np.zeros(padded.shape[1] + 2 * more * hop)
    for t in range(pieces.shape[2]):
        total[..., t * hop : t * hop + n_fft] += pieces[:, :, t]
    for t in range(pieces.shape[2] + 2 * more):
        weight[t * hop : t * hop + n_fft] += window**2
    weight = weight[more * hop :][: padded.shape[1]]
    result = (total / np.maximum(weight, 1e-12))[..., margin : margin + length]
    if branch:
        result[[stems.index(name) for name in given]] += found["stem_samples"][0]
    if spec["residual_stem"]:  # this stem is the mixture minus the others
        index = stems.index(spec["residual_stem"])
        result[index] = piece - spec["residual_gain"] * (result.sum(axis=0) - result[index])
    return result


def separate(mixture):  # [C, N] -> [S, C, N]
    samples = mixture.shape[1]
    chunks = 1 + max(0, math.ceil((samples - kept) / step))
    padded = np.pad(mixture, ((0, 0), (context, (chunks - 1) * step + kept + after - samples)))
    rise = (np.arange(fade) + 0.5) / max(fade, 1)
    result = np.zeros((len(stems), mixture.shape[0], (chunks - 1) * step + kept))
    for k in range(chunks):
        part = separate_chunk(padded[:, k * step : k * step + length])[..., context : context + kept]
        part[..., :fade] *= rise if k > 0 else 1
        part[..., kept - fade :] *= 1 - rise if k < chunks - 1 else 1
        result[..., k * step : k * step + kept] += part
    return result[..., :samples]


audio, rate = soundfile.read(sys.argv[2], always_2d=True, dtype="float32")
assert rate == stft["sample_rate"], f"resample {rate} Hz to {stft['sample_rate']} Hz first"
folder = Path(sys.argv[3])
folder.mkdir(parents=True, exist_ok=True)
for name, signal in zip(stems, separate(audio.T), strict=True):
    soundfile.write(folder / f"{name}.wav", signal.T, rate, subtype="FLOAT")
