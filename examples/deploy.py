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
stft, chunk, stems = spec["stft"], spec["chunk"], spec["stems"]
n_fft, hop = stft["n_fft"], stft["hop"]
window = np.sin(np.pi * np.arange(n_fft) / n_fft) ** 2  # periodic Hann
length, context, fade = ((chunk["frames"] - 1) * hop, chunk["context"] * hop, chunk["fade"] * hop)
kept = length - 2 * context  # samples of a chunk that are used
step = kept - fade


def separate_chunk(piece):  # [C, length] -> [S, C, length]
    padded = np.pad(piece, ((0, 0), (n_fft // 2, n_fft // 2)))
    frames = np.lib.stride_tricks.sliding_window_view(padded, n_fft, axis=1)[:, ::hop]  # [C, T, n_fft]
    # SciPy in float32, window times scale: the same bits as in tfx. NumPy rounds otherwise: 12 dB less.
    spectrum = scipy.fft.rfft(frames * (window * stft["scale"]).astype(np.float32))  # [C, T, F + 1]
    bins = spectrum[..., :-1]  # the network sees all but the Nyquist bin: [C, 2, T, F] -> [1, 2*C, T, F]
    planes = np.stack((bins.real, bins.imag), axis=1).reshape(1, -1, *bins.shape[1:])
    out = session.run(["stems"], {"mixture": planes.astype(np.float32)})[0][0].astype(np.float64)
    out = out.reshape(len(stems), -1, 2, *bins.shape[1:])  # [S, 2*C, T, F] -> [S, C, 2, T, F]
    full = np.zeros((len(stems), *spectrum.shape), complex)
    full[..., :-1] = out[:, :, 0] + 1j * out[:, :, 1]
    full[stems.index(spec["unseen_stem"]), ..., -1] = spectrum[..., -1]
    pieces = np.fft.irfft(full, n_fft) * window / stft["scale"]
    total, weight = np.zeros((*pieces.shape[:2], padded.shape[1])), np.zeros(padded.shape[1])
    for t in range(pieces.shape[2]):
        total[..., t * hop : t * hop + n_fft] += pieces[:, :, t]
        weight[t * hop : t * hop + n_fft] += window**2
    result = (total / np.maximum(weight, 1e-12))[..., n_fft // 2 : n_fft // 2 + length]
    if spec["residual_stem"]:  # this stem is the mixture minus the others, so that all add up to it
        result[stems.index(spec["residual_stem"])] += piece - result.sum(axis=0)
    return result


def separate(mixture):  # [C, N] -> [S, C, N]
    samples = mixture.shape[1]
    count = 1 + max(0, math.ceil((samples - kept) / step))
    padded = np.pad(mixture, ((0, 0), (context, (count - 1) * step + kept + context - samples)))
    rise = (np.arange(fade) + 0.5) / max(fade, 1)
    result = np.zeros((len(stems), mixture.shape[0], (count - 1) * step + kept))
    for k in range(count):
        part = separate_chunk(padded[:, k * step : k * step + length])[..., context : context + kept]
        part[..., :fade] *= rise if k > 0 else 1
        part[..., kept - fade :] *= 1 - rise if k < count - 1 else 1
        result[..., k * step : k * step + kept] += part
    return result[..., :samples]


audio, rate = soundfile.read(sys.argv[2], always_2d=True, dtype="float32")
assert rate == stft["sample_rate"], f"resample {rate} Hz to {stft['sample_rate']} Hz first"
folder = Path(sys.argv[3])
folder.mkdir(parents=True, exist_ok=True)
for name, signal in zip(stems, separate(audio.T), strict=True):
    soundfile.write(folder / f"{name}.wav", signal.T, rate, subtype="FLOAT")
