"""What a network is trained for: to separate, or to guess what was hidden from it.

The loop knows a task by ``Task``; what a task does to the data, how it scores, and what it leaves behind
is in here.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from tfswa.runtime.errors import BundleError, ConfigError, reason
from tfswa.runtime.files.atomic import writing
from tfswa.runtime.metrics import sdr_db
from tfswa.runtime.model.bundle import ONLY, WEIGHTS, Bundle, replacing_directory
from tfswa.runtime.model.spec import INPUT, OUTPUT, SAMPLES, STEM_SAMPLES, ModelSpec
from tfswa.train.config import ModelConfig, PretrainConfig, TrainConfig
from tfswa.train.data.songs import TrainingSong
from tfswa.train.families.contract import call
from tfswa.train.losses import SeparationLoss
from tfswa.train.reference import separate_whole
from tfswa.train.spectral import DifferentiableStft

log = logging.getLogger(__name__)

PRETRAINED = "pretrained.safetensors"
_DIGEST = "sha256"  # of names, types, shapes and values, in the metadata of what pre-training leaves
SILENT_DBFS = -60.0  # RMS of a held-out stem; below it there is nothing that a score could be about


class Task(Protocol):
    """What the loop asks of a task."""

    @property
    def names(self) -> Sequence[str]:
        """Names of the scores that ``validate`` gives where all of them are defined."""

    @property
    def groups(self) -> Sequence[tuple[str, ...]]:
        """Per signal of a chunk, the sources that are summed to it."""

    @property
    def stft(self) -> DifferentiableStft:
        """The model's transform, on the task's device."""

    def loss(self, network: Any, signals: Tensor, indices: Sequence[int]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of chunks ``[B, S, C, N]`` of these indices, and its parts; ``network`` is the wrapped one."""

    def leave_out(self, terms: Collection[str]) -> None:
        """Let these terms of the loss be 0, and all others count."""

    def validate(self, network: nn.Module, song: TrainingSong) -> dict[str, float]:
        """Scores of one held-out song by name, higher is better; a score that is undefined is left out."""

    def save(
        self, out: Path, weights: Mapping[str, Tensor], provenance: Mapping[str, Any], best: bool
    ) -> None:
        """Write what the training is for."""


class Separation:
    """Stems from their mixture.

    Args:
        config: losses, sources, how much of a held-out song is separated.
        spec: the contract.
        device: where losses are computed.
    """

    def __init__(self, config: TrainConfig, spec: ModelSpec, device: torch.device):
        self.spec, self.device, self.names = spec, device, spec.stems
        self.groups = [config.data.sources[stem] for stem in spec.stems]
        self.seconds = config.run.validation_seconds or math.inf
        self.stft = DifferentiableStft(spec.stft, device)
        self.start = spec.first_counted
        self.given = [spec.stems.index(stem) for stem in spec.outputs]
        self.terms = SeparationLoss(config.loss, spec.stft.sample_rate, device)

    def loss(self, network: Any, signals: Tensor, indices: Sequence[int]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of true stems ``[B, S, C, N]``; see ``Task``."""
        true_planes, _ = self.stft.forward(signals)
        planes = self._estimate(network, true_planes.sum(dim=1), signals.sum(dim=1))
        wave = None
        if self.terms.needs_waveform:
            # Of what the network does not see there is nothing that a loss would teach it.
            wave = self.stft.inverse(planes, None, signals.shape[-1])[..., self.start * self.spec.stft.hop :]
        # Frames that the network passes over teach it nothing, nor do samples that they reach.
        counted = slice(self.start, None)
        return self.terms(
            planes[..., counted, :],
            true_planes[:, self.given, :, counted],
            wave,
            signals[:, self.given, :, self.start * self.spec.stft.hop :],
        )

    def _estimate(self, network: Any, mixture: Tensor, samples: Tensor) -> Tensor:
        """Planes of the stems that a network gives; those of the samples that it gives are among them."""
        found = call(network, self.spec, {INPUT: mixture, SAMPLES: samples})
        planes = found[OUTPUT]
        return planes + self.stft.forward(found[STEM_SAMPLES])[0] if self.spec.samples else planes

    def leave_out(self, terms: Collection[str]) -> None:
        """Let these terms be 0; see ``Task``."""
        self.terms.left_out = frozenset(terms)

    def validate(self, network: nn.Module, song: TrainingSong) -> dict[str, float]:
        """SDR in dB per stem of a song, or of its middle; without stems below ``SILENT_DBFS`` there.

        What is that quiet has no sound to separate: its SDR is that of the noise around it, -48 dB for a
        passage at -89 dBFS, and would outweigh every song that sounds.
        """
        stems = self.excerpt(song)
        heard = [level_dbfs(stem) >= SILENT_DBFS for stem in stems]
        if not any(heard):
            return {}
        estimate = self.separate(network, stems)
        values = {stem: sdr_db(stems[i], estimate[i]) for i, stem in enumerate(self.spec.stems) if heard[i]}
        return {stem: value for stem, value in values.items() if value is not None}

    def separate(self, network: nn.Module, stems: NDArray[np.float32]) -> NDArray[np.float64]:
        """Separate the sum of true stems ``[S, C, N]``, through the reference's plain host."""
        mixture = torch.from_numpy(stems.sum(axis=0))
        return separate_whole(network, self.spec, mixture, self.device).numpy()

    def excerpt(self, song: TrainingSong, seconds: float = math.inf) -> NDArray[np.float32]:
        """True stems ``[S, C, N]`` from the middle of a song; a source that it lacks is silent."""
        wanted = min(seconds, self.seconds) * self.spec.stft.sample_rate
        length = int(min(song.samples, wanted))
        start = (song.samples - length) // 2
        cut = slice(start, start + length)
        stems = np.zeros((len(self.groups), self.spec.channels, length), np.float32)
        for stem, group in zip(stems, self.groups, strict=True):
            for source in group:
                if source in song.sources:
                    stem += song.sources[source][:, cut]
        return stems

    def save(
        self, out: Path, weights: Mapping[str, Tensor], provenance: Mapping[str, Any], best: bool
    ) -> None:
        """Write ``last.tfx``, and ``best.tfx`` where this is the best so far.

        One that holds more than weights (somebody exported from it) is kept beside as
        ``best-step-<steps>.tfx``: what was made from old weights does not fit the new ones.
        """
        arrays = {name: value.numpy() for name, value in weights.items()}
        for name in ("best.tfx", "last.tfx") if best else ("last.tfx",):
            _keep_aside(out / name)
            Bundle.create(out / name, self.spec, arrays, provenance=provenance, force=True)


def _keep_aside(path: Path) -> None:
    """Keep a bundle to which something was added under a name of its own, before another takes its place."""
    try:
        bundle = Bundle.open(path)
    except BundleError:  # not there, or not worth keeping
        return
    added = sorted(name for name in bundle.files if name != WEIGHTS)
    added += sorted(str(inside.relative_to(path)) for inside in path.glob(f"{ONLY}/*.tfx"))
    if not added:
        return
    step = int(bundle.provenance.get("step", 0))
    aside = path.with_name(f"{path.stem}-step-{step:08d}{path.suffix}")
    with replacing_directory(aside, force=True, named=False) as work:
        shutil.copytree(path, work, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*"))
    log.warning("%s gets new weights: the old ones, with %s, are kept as %s", path, ", ".join(added), aside)


class Reconstruction:
    """Patches of the normalized features are hidden and guessed; the loss is that of the hidden part alone.

    After K. He et al., Masked Autoencoders Are Scalable Vision Learners, CVPR 2022, with a U-Net that sees
    the hidden patches as the mean of the training set.

    Args:
        config: share and size of the patches.
        spec: the contract.
        device: where losses are computed.
    """

    def __init__(self, config: TrainConfig, spec: ModelSpec, device: torch.device):
        self.config: PretrainConfig = config.pretrain
        self.spec, self.device, self.seed = spec, device, config.optim.seed
        self.names = ("reconstruction",)
        self.groups = list(config.data.sources.values())
        self.seconds = config.run.validation_seconds or math.inf
        self.stft = DifferentiableStft(spec.stft, device)

    def loss(self, network: Any, signals: Tensor, indices: Sequence[int]) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of signals ``[B, 1, C, N]``; see ``Task``."""
        planes, _ = self.stft.forward(signals[:, 0])
        hidden = self._hidden(planes, indices)
        guess, truth = network.reconstruct(planes, hidden)
        distance = ((guess - truth).abs() * hidden[:, None]).mean(dim=(1, 2))  # [B, T, F]
        # Patches cut by the edge are smaller: a mean per chunk, so that all chunks weigh alike.
        each = distance.sum(dim=(1, 2)) / hidden.sum(dim=(1, 2, 3))
        return each.mean(), {}

    def leave_out(self, terms: Collection[str]) -> None:
        """See ``Task``; there is one term."""
        assert not terms  # see bounds.py

    def validate(self, network: nn.Module, song: TrainingSong) -> dict[str, float]:
        """How well hidden features of a song's first chunks are guessed: minus the loss."""
        length = self.spec.chunk_samples
        wanted = max(length, self.seconds * self.spec.stft.sample_rate)  # a chunk at least
        chunks = min(8, int(min(song.samples, wanted)) // length)
        there = [source for source in self.groups[0] if source in song.sources]
        if chunks == 0 or not there:
            return {}
        mixture = np.sum([song.sources[source][:, : chunks * length] for source in there], axis=0)
        signals = torch.from_numpy(mixture.astype(np.float32).reshape(-1, chunks, length))
        with torch.no_grad():
            values = [
                float(self.loss(network, signals[None, None, :, k].to(self.device), [k])[0])
                for k in range(chunks)
            ]
        return {"reconstruction": -float(np.mean(values))}

    def save(
        self, out: Path, weights: Mapping[str, Tensor], provenance: Mapping[str, Any], best: bool
    ) -> None:
        """Write the best weights; a bundle would promise that they separate."""
        if best:
            contiguous = {name: value.contiguous() for name, value in weights.items()}
            metadata = {
                "family": self.spec.family_in_words,
                "provenance": json.dumps(provenance),
                _DIGEST: _sha256(contiguous),
            }
            with writing(out / PRETRAINED) as stream:
                stream.write(save(contiguous, metadata))

    def _hidden(self, planes: Tensor, indices: Sequence[int]) -> Tensor:
        """Draw which patches are hidden, ``[B, 1, T, F]``, as many of every chunk."""
        t, f = planes.shape[-2:]
        rows, columns = -(-t // self.config.patch_frames), -(-f // self.config.patch_bins)
        patches_in_all = rows * columns
        count = min(max(1, round(self.config.share * patches_in_all)), patches_in_all - 1)
        patches = np.zeros((len(indices), patches_in_all), bool)
        for item, index in zip(patches, indices, strict=True):
            # The third number keeps these draws apart from those of the chunk itself.
            random = np.random.default_rng((self.seed, index, 1))
            item[random.permutation(patches_in_all)[:count]] = True
        grid = torch.from_numpy(patches).reshape(-1, 1, rows, columns)
        grid = grid.repeat_interleave(self.config.patch_frames, 2)[:, :, :t]
        return grid.repeat_interleave(self.config.patch_bins, 3)[..., :f].to(planes.device)


def _read(path: Path) -> dict[str, Tensor]:
    """Read a file of weights; one that pre-training left is compared with its digest.

    Raises:
        ValueError: it is damaged; safetensors' own errors are others.
    """
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    weights = load_file(path)
    if _DIGEST in metadata and metadata[_DIGEST] != _sha256(weights):
        raise ValueError("it is damaged: its own digest does not match")
    return weights


def _sha256(weights: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def level_dbfs(signal: NDArray[Any]) -> float:
    """RMS over every channel and sample, in dB below full scale; -inf for digital silence and for nothing."""
    power = float(np.square(signal, dtype=np.float64).mean()) if signal.size else 0.0
    return 10 * math.log10(power) if power else -math.inf


def new_task(config: TrainConfig, spec: ModelSpec, device: torch.device) -> Separation | Reconstruction:
    """Make the task that a configuration asks for."""
    return (Reconstruction if config.pretrain.share else Separation)(config, spec, device)


def initialize(network: nn.Module, config: ModelConfig) -> list[str]:
    """Give a network the weights of ``model.init``.

    Returns:
        Names of the weights that were given.

    Raises:
        ConfigError: no such file, or weights that do not fit.
    """
    path = Path(config.init)
    try:
        bundle = Bundle.open(path) if path.is_dir() else None
        if bundle is not None and bundle.spec.family is None:
            raise ConfigError(
                f"model.init {path} is a published graph without weights to begin from: name a bundle that "
                "holds weights, or leave it out"
            )
        weights = _read(path) if bundle is None else load_file(bundle.file(WEIGHTS))
    except ConfigError:
        raise
    except Exception as error:  # those of safetensors share no public base
        raise ConfigError(
            f"model.init {path} cannot be read ({reason(error)}): name a bundle or {PRETRAINED}"
        ) from error
    skip = config.init_skip
    given = {name: value.float() for name, value in weights.items() if not name.startswith(skip)}
    own = network.state_dict()
    for name, value in given.items():
        shape = tuple(own[name].shape) if name in own else None
        if shape != tuple(value.shape):
            expects = "has none of that name" if shape is None else f"expects {list(shape)}"
            raise ConfigError(
                f"model.init {path}: {name} is {list(value.shape)}, {config.family} {expects}: "
                "choose the same family and hyper-parameters, or leave it out with model.init_skip"
            )
    missing = [name for name in own if name not in given and not name.startswith(skip)]
    if missing:
        raise ConfigError(
            f"model.init {path} lacks {len(missing)} of the {len(own)} weights of {config.family}, "
            f"{missing[0]} first: name them in model.init_skip to begin with random ones"
        )
    network.load_state_dict(given, strict=False)
    return sorted(given)
