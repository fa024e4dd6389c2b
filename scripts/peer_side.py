"""One side of scripts/peers: the package of others, or tfx, in a process of its own.

peer_side.py make NAME FOLDER                    weights and configuration, as NAME's are published, at random
peer_side.py NAME FOLDER SONG                    the package's network, on the CPU
peer_side.py BACKEND:PRECISION FOLDER SONG --overlap RULE    tfx with FOLDER/model.tfx

Loaded, it prints a line; for each line that it is given it separates SONG (.npy, ``[2, N]``) and prints the
seconds and its peak of memory so far. The stems are in FOLDER/SIDE.npy. Nothing of tfx is imported for
another package, which may live in an environment of its own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

RATE = 44_100
SOURCES = ["drums", "bass", "other", "vocals"]
STEREO = {"stereo": True, "num_stems": 1, "heads": 8, "dim_head": 64, "stft_hop_length": 441}
ROFORMERS: dict[str, dict[str, Any]] = {
    "bs-roformer": {
        **STEREO,
        "dim": 512,
        "depth": 12,
        "time_transformer_depth": 1,
        "freq_transformer_depth": 1,
        "mask_estimator_depth": 2,
    },
    "mel-band-roformer": {
        **STEREO,
        "dim": 384,
        "depth": 6,
        "num_bands": 60,
        "sample_rate": RATE,
        "time_transformer_depth": 1,
        "freq_transformer_depth": 1,
        "mask_estimator_depth": 2,
    },
}
UNLIKE_PUBLISHED = {"num_residual_streams": 1}  # what this package has today, and published weights have not
CHUNK = 352_800  # of both, 8 s
MDX = {"n_fft": 7680, "hop": 1024, "bins": 3072, "frames": 256}
Separate = Callable[[np.ndarray], np.ndarray]


def main() -> None:
    if sys.argv[1] == "make":
        import torch

        torch.manual_seed(0)
        MAKE[sys.argv[2]](sys.argv[2], Path(sys.argv[3]))
        return
    parser = argparse.ArgumentParser()
    parser.add_argument("side")
    parser.add_argument("folder", type=Path)
    parser.add_argument("song", type=Path)
    parser.add_argument("--overlap", default="1")
    given = parser.parse_args()
    song = np.load(given.song)
    separate = ours(given) if ":" in given.side else THEIRS[given.side](given.side, given.folder)
    print("loaded", flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        stems = separate(song)
        seconds = time.perf_counter() - began
        np.save(given.folder / f"{given.side.replace(':', '-')}.npy", stems)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps({"seconds": seconds, "memory_mb": peak * 1024 / 1e6}), flush=True)


def ours(given: argparse.Namespace) -> Separate:
    """tfx; it ends with one line where it refuses."""
    from tfswa.runtime.backends import BackendOptions
    from tfswa.runtime.errors import TfxError
    from tfswa.runtime.stream.separator import Separator

    backend, precision = given.side.split(":")
    options = BackendOptions(precision)
    path = str(given.folder / "model.tfx")
    try:
        return Separator(path, backend=backend, options=options, overlap=given.overlap).separate
    except TfxError as error:
        sys.exit(str(error))


def make_roformer(name: str, folder: Path) -> None:
    """A state dictionary, and the YAML of the training suite."""
    import torch

    state = roformer(name).state_dict()
    torch.save({f"module.{key}": value for key, value in state.items()}, folder / "model.ckpt")
    config = {
        "audio": {"chunk_size": CHUNK, "sample_rate": RATE},
        "model": ROFORMERS[name],
        "training": {"instruments": ["vocals", "other"], "target_instrument": "vocals"},
        "inference": {"num_overlap": 2},
    }
    (folder / "config.yaml").write_text(json.dumps(config))  # which is YAML too


def roformer(name: str) -> Any:
    from bs_roformer import BSRoformer, MelBandRoformer

    more: dict[str, Any] = dict(UNLIKE_PUBLISHED)
    if name == "mel-band-roformer":
        return MelBandRoformer(**ROFORMERS[name], **more, add_value_residual=False).eval()
    return BSRoformer(**ROFORMERS[name], **more, zero_dc=True).eval()


def their_roformer(name: str, folder: Path) -> Separate:
    """The network on chunks that do not overlap; the package has no way through a song."""
    import torch

    network = roformer(name)
    state = torch.load(folder / "model.ckpt", weights_only=True)
    network.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})

    def separate(song: np.ndarray) -> np.ndarray:
        pieces = []
        with torch.inference_mode():
            for start in range(0, song.shape[1], CHUNK):
                pieces.append(network(torch.from_numpy(song[None, :, start : start + CHUNK]))[0].numpy())
        vocals = np.concatenate(pieces, axis=-1)
        return np.stack((vocals, song - vocals))

    return separate


def make_htdemucs(name: str, folder: Path) -> None:
    """A file as the package writes them."""
    from fractions import Fraction

    import torch
    from demucs.htdemucs import HTDemucs

    settings = {"bottom_channels": 512, "dconv_mode": 3, "segment": Fraction(39, 5)}
    network = HTDemucs(SOURCES, **settings)
    package = {"klass": HTDemucs, "args": (SOURCES,), "kwargs": settings, "state": network.state_dict()}
    torch.save(package, folder / "model.th")


def their_htdemucs(name: str, folder: Path) -> Separate:
    """As its command does, without random shifts."""
    import torch
    from demucs.apply import apply_model

    package = torch.load(folder / "model.th", weights_only=False)  # made by the line above
    network = package["klass"](*package["args"], **package["kwargs"]).eval()
    network.load_state_dict(package["state"])

    def separate(song: np.ndarray) -> np.ndarray:
        mixture = torch.from_numpy(song)
        level = mixture.mean(0)
        mixture = (mixture - level.mean()) / level.std()
        with torch.inference_mode():
            stems = apply_model(network, mixture[None], shifts=0, overlap=0.25)[0]
        return (stems * level.std() + level.mean()).numpy()

    return separate


def make_mdx_net(name: str, folder: Path) -> None:
    """A graph as UVR's: TFC-TDF U-Net, 11 blocks, from torch's own exporter."""
    import torch
    from torch import nn

    wide, bins, norms = 48, MDX["bins"], nn.BatchNorm2d

    def block(channels: int, height: int) -> nn.Module:
        convs = [
            part
            for _ in range(3)
            for part in (nn.Conv2d(channels, channels, 3, padding=1), norms(channels), nn.ReLU())
        ]
        linear = nn.Sequential(
            *(nn.Linear(height, height // 8), norms(channels), nn.ReLU()),
            *(nn.Linear(height // 8, height), norms(channels), nn.ReLU()),
        )
        return nn.ModuleList((nn.Sequential(*convs), linear))  # type: ignore[return-value]

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            levels = [wide * (level + 1) for level in range(6)]
            self.first = nn.Sequential(nn.Conv2d(4, wide, 1), norms(wide), nn.ReLU())
            self.blocks = nn.ModuleList(
                block(levels[min(k, 10 - k)], bins >> min(k, 10 - k)) for k in range(11)
            )
            self.down = nn.ModuleList(
                nn.Sequential(nn.Conv2d(a, b, 2, stride=2), norms(b), nn.ReLU())
                for a, b in itertools.pairwise(levels)
            )
            self.up = nn.ModuleList(
                nn.Sequential(nn.ConvTranspose2d(b, a, 2, stride=2), norms(a), nn.ReLU())
                for a, b in zip(levels[-2::-1], levels[:0:-1], strict=True)
            )
            self.last = nn.Conv2d(wide, 4, 1)

        def forward(self, x: Any) -> Any:
            x, skips = self.first(x).transpose(2, 3), []
            for level, down in enumerate(self.down):
                x = self.through(level, x)
                skips.append(x)
                x = down(x)
            x = self.through(5, x)
            for level, up in enumerate(self.up):
                x = self.through(6 + level, up(x) * skips.pop())
            return self.last(x.transpose(2, 3))

        def through(self, number: int, x: Any) -> Any:
            convs, linear = self.blocks[number]  # type: ignore[misc]
            x = convs(x)
            return x + linear(x)

    given = torch.zeros(1, 4, bins, MDX["frames"])
    axes = {"input": {0: "batch_size"}, "output": {0: "batch_size"}}
    names: dict[str, Any] = {"input_names": ["input"], "output_names": ["output"], "dynamic_axes": axes}
    path = str(folder / "model.onnx")
    torch.onnx.export(Network().eval(), (given,), path, dynamo=False, opset_version=13, **names)


def their_mdx_net(name: str, folder: Path) -> Separate:
    """Chunk by chunk as UVR does, in ONNX Runtime with its own settings."""
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    n_fft, hop, bins, frames = MDX["n_fft"], MDX["hop"], MDX["bins"], MDX["frames"]
    window, trim, chunk = torch.hann_window(n_fft), 4 * hop, hop * (frames - 1)
    kept = chunk - 2 * trim

    def separate(song: np.ndarray) -> np.ndarray:
        samples = song.shape[1]
        behind = kept - samples % kept + trim
        padded = torch.from_numpy(np.pad(song, ((0, 0), (trim, behind))))
        pieces = []
        for start in range(0, samples, kept):
            piece = padded[:, start : start + chunk]
            spectrum = torch.stft(piece, n_fft, hop, window=window, center=True, return_complex=True)
            planes = torch.view_as_real(spectrum).permute(0, 3, 1, 2).reshape(1, 4, -1, frames)[:, :, :bins]
            taken = planes.clone()
            taken[:, :, :3] = 0.0
            found = torch.from_numpy(session.run(None, {"input": taken.numpy()})[0])
            found = torch.nn.functional.pad(found, (0, 0, 0, n_fft // 2 + 1 - bins))
            pairs = found.reshape(2, 2, -1, frames).permute(0, 2, 3, 1).contiguous()
            wave = torch.istft(torch.view_as_complex(pairs), n_fft, hop, window=window, center=True)
            pieces.append(wave[:, trim : trim + kept].numpy())
        vocals = np.concatenate(pieces, axis=1)[:, :samples]
        return np.stack((vocals, song - vocals))

    return separate


MAKE = {
    "htdemucs": make_htdemucs,
    "bs-roformer": make_roformer,
    "mel-band-roformer": make_roformer,
    "mdx-net": make_mdx_net,
}
THEIRS = {
    "htdemucs": their_htdemucs,
    "bs-roformer": their_roformer,
    "mel-band-roformer": their_roformer,
    "mdx-net": their_mdx_net,
}

if __name__ == "__main__":
    main()
