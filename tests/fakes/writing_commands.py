"""Every command that writes files, over a tiny network and short songs: what to type, and where."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import soundfile

RATE = 8000
SEPARATE = ("separate", "song.wav", "-m", "mine.tfx", "-o", "out", "--backend", "ort", "--force")
EXPORT = ("export", "mine.tfx", "--format", "torchscript", "--force")
CALIBRATE = ("calibrate", "mine.tfx", "--audio", "songs", "--chunks", "2", "--held-out", "1", "--force")
PARITY = ("parity", "mine.tfx", "--backend", "ort", "--audio", "song.wav", "--quick")
PARITY += ("--markdown", "p.md", "--force")
EVALUATE = ("evaluate", "mine.tfx", "--data", "songs", "-o", "scores", "--no-plot", "--force")
TRAIN = ("train", "tiny.toml", "-o", "run", "--threads", "1")
IMPORT = ("import", "spleeter", "-o", "new.tfx", "--force")  # with small_import.py
NEW = ("new", "tfswa_lite", "-o", "new.tfx", "--force")
BUILD = (
    "build-engine",
    "mine.tfx",
    "--flavor",
    "rtx",
    "--compute-capability",
    "8.9",
    "--force",
)  # needs no GPU

CONFIG = """
[model]
family = "tfswa_lite"
[model.hyper]
fold = 32
dims = [8, 8]
depths = [1, 1]
decoder_depths = [1]
heads = [1, 1]
mlp_ratio = 1.0
[data]
root = "songs"
cache = "decoded"
workers = 0
sources = {vocals = ["vocals"], accompaniment = ["drums"]}
[optim]
length = 2
batch = 1
frames = 64
warmup = 0
[run]
pictures = false
statistics_batches = 1
checkpoint_every = 1
validate_every = 1
"""


def furnish(folder: Path, bundle: Path, songs: Path, seconds: int) -> None:
    """Put into a folder what the commands read: ``mine.tfx``, ``songs``, ``song.wav``, ``tiny.toml``."""
    shutil.copytree(bundle, folder / "mine.tfx")
    shutil.copytree(songs, folder / "songs")
    noise = np.random.default_rng(0).standard_normal((RATE * seconds, 2)).astype(np.float32) * 0.1
    soundfile.write(folder / "song.wav", noise, RATE, subtype="FLOAT")
    (folder / "tiny.toml").write_text(CONFIG)
    (folder / "some.whl").write_bytes(b"wheel")
