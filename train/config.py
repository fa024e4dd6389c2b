"""The training configuration: one TOML file into frozen dataclasses, strictly.

Unknown keys, wrong types and impossible numbers are errors before anything is loaded. The resolved
configuration is stored with every checkpoint and in the provenance of every bundle.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tfswa.runtime.errors import ConfigError

Duration = int | str
"""A number of optimizer steps, or a string: ``"300 epochs"``, ``"1.5 epochs"``, ``"200 steps"``.

An epoch is as many chunks as the training songs hold end to end.
"""


@dataclass(frozen=True)
class ModelConfig:
    """What is trained.

    Attributes:
        family: a family's name.
        stems: outputs, in order.
        hyper: hyper-parameters that differ from the family's defaults.
        residual_stem: stem replaced by mixture minus the others at separation; empty for none.
        network_stems: stems that the network gives; empty for all. It may leave out ``residual_stem``.
        license: license of the resulting weights, SPDX where there is one.
        init: weights to start from: a bundle, or what a pre-training run left (``pretrained.safetensors``);
            empty for random ones. Relative to the configuration file.
        init_skip: beginnings of the names of weights that ``init`` does not give.
        frozen: beginnings of the names of weights that stay as they are.
        lora_rank: rank of the changes that linear layers learn in place of their weights, all else being
            frozen but what ``init_skip`` names; 0 for none.
        lora: parts of the names of these layers, such as ``to_qkv``.
        channels: audio channels.
        zero_unseen: whether bins that the network does not see are zero; else they are the last stem's.
        stft: values of the transform that differ from the family's.
        chunk: likewise of the chunks that a bundle is separated in.

    What a configuration without ``family`` does not say here is that of the bundle ``init``.
    """

    family: str = "tfswa_unet"
    stems: tuple[str, ...] = ("vocals", "accompaniment")
    hyper: Mapping[str, Any] = field(default_factory=dict)
    residual_stem: str = ""
    network_stems: tuple[str, ...] = ()
    license: str = "unknown"
    init: str = ""
    init_skip: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    lora_rank: int = 0
    lora: tuple[str, ...] = ()
    channels: int = 2
    zero_unseen: bool = False
    stft: Mapping[str, Any] = field(default_factory=dict)
    chunk: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SetConfig:
    """Songs that are drawn from by share.

    Attributes:
        songs: names, or patterns of the shell (``sung-*``); a song belongs to the first set that names it.
        shares: per stem, of the remixed chunks whose source or stem comes from here; a stem that is not named
            has 0. What the sets give to one stem counts in proportion, among the sets that have the source.
    """

    songs: tuple[str, ...]
    shares: Mapping[str, float]


@dataclass(frozen=True)
class DataConfig:
    """Where the audio is, and how it is read.

    Attributes:
        root: MUSDB18 (stem files), MUSDB18-HQ, or any folder of song folders or stem files; for
            pre-training also a folder of audio files. Relative to the configuration file.
        split: subfolder of ``root`` to train on, where it has the two of MUSDB (train, test); the songs of
            ``validation`` come from the same.
        sources: per stem the sources that are summed to it.
        validation: names of the songs held out.
        songs: names of the songs to train on; empty for all that are not held out.
        partial: songs may lack sources (a voice alone, an accompaniment alone). Remixing draws each source
            from the songs that have it; a chunk from one place is of a song that has every stem.
        sets: by which share remixing draws songs; none for every song alike.
        cache: folder for decoded audio; empty for the user's cache.
        cache_gb: limit of that folder, shared by all runs that use it.
        activity_db: a chunk of a source quieter than this (dBFS, RMS) is drawn again, up to ``draws`` times.
        draws: see ``activity_db``; the last one is made among the places that sound most, 1 takes any place.
        workers: loader processes; 0 loads in the training process.
    """

    root: str = "data"
    split: str = "train"
    sources: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: {"vocals": ("vocals",), "accompaniment": ("drums", "bass", "other")}
    )
    validation: tuple[str, ...] = ()
    songs: tuple[str, ...] = ()
    partial: bool = False
    sets: tuple[SetConfig, ...] = ()
    cache: str = ""
    cache_gb: float = 64.0
    activity_db: float = -45.0
    draws: int = 4
    workers: int = 1


@dataclass(frozen=True)
class AugmentConfig:
    """What is done to the sources of a training chunk.

    A name alone is a probability. Tempo, pitch and speed are drawn once a chunk where its sources belong
    together, and once a source where ``remix`` mixed them; everything else once a source.

    Attributes:
        remix: that the sources of a chunk come from different songs and places.
        remix_sources: that every source of a remixed chunk is drawn on its own; otherwise the sources of a
            stem stay together, and stems are drawn.
        without: per stem, that all of it is left out of the chunk.
        balance: that the level of one stem against the sum of the others is set.
        balance_stem: which stem.
        balance_db: its RMS over that of the others, in dB, uniform; silence stays, and no gain is above 18 dB
            or below -18 dB.
        tempo: that the tempo changes, pitch kept (Signalsmith Stretch).
        tempo_range: factor, uniform; above 1 is faster.
        pitch: that the pitch changes, tempo kept.
        pitch_semitones: largest shift either way, uniform.
        speed: that it is played faster or slower, pitch and tempo together (resampled).
        speed_range: factor, log-uniform; above 1 is faster and higher.
        gain: that the level changes.
        gain_range: factor, uniform.
        frequency_mask: that one band is removed.
        frequency_mask_hz: widest band, uniform from 0, anywhere below half the sample rate.
        time_mask: that one span is silenced.
        time_mask_seconds: longest span, uniform from 0.
        channel_swap: that left and right change places.
        silence: that the source is left out.
        formant: that the spectral envelope moves, pitch kept: another size of the singer.
        formant_semitones: largest shift either way, uniform.
        equalizer: that five bands get gains.
        equalizer_db: largest gain of a band either way, uniform.
        compression: that what is louder than the source's RMS is lowered.
        compression_ratio: uniform.
        clipping: that peaks are cut off.
        clipping_db: below the source's peak, uniform.
        doubling: that a copy sounds 8 to 35 ms later, its channels exchanged.
        delay: that it has echoes.
        delay_seconds: between two of them, uniform.
        reverb: that it sounds in a room.
        reverb_seconds: until that has decayed by 60 dB, uniform.
        reverb_share: of the room in the sound, uniform.
        width: that the difference between left and right gets a gain.
        width_range: that gain, uniform.
        mono: that left and right become equal.
        codec: that it is coded as MP3 or AAC.
        codec_kbits: per second, uniform.
    """

    remix: float = 0.5
    remix_sources: float = 1.0
    without: Mapping[str, float] = field(default_factory=dict)
    balance: float = 0.0
    balance_stem: str = "vocals"
    balance_db: tuple[float, float] = (-14.0, 4.0)
    tempo: float = 0.0
    tempo_range: tuple[float, float] = (0.9, 1.1)
    pitch: float = 0.0
    pitch_semitones: float = 2.0
    speed: float = 0.0
    speed_range: tuple[float, float] = (0.87, 1.15)
    gain: float = 1.0
    gain_range: tuple[float, float] = (0.7, 1.3)
    frequency_mask: float = 0.0
    frequency_mask_hz: float = 2000.0
    time_mask: float = 0.0
    time_mask_seconds: float = 0.3
    channel_swap: float = 0.5
    silence: float = 0.0
    formant: float = 0.0
    formant_semitones: float = 4.0
    equalizer: float = 0.0
    equalizer_db: float = 6.0
    compression: float = 0.0
    compression_ratio: tuple[float, float] = (1.5, 6.0)
    clipping: float = 0.0
    clipping_db: tuple[float, float] = (3.0, 12.0)
    doubling: float = 0.0
    delay: float = 0.0
    delay_seconds: tuple[float, float] = (0.1, 0.5)
    reverb: float = 0.0
    reverb_seconds: tuple[float, float] = (0.2, 2.5)
    reverb_share: tuple[float, float] = (0.05, 0.5)
    width: float = 0.0
    width_range: tuple[float, float] = (0.3, 1.5)
    mono: float = 0.0
    codec: float = 0.0
    codec_kbits: tuple[float, float] = (48.0, 128.0)


@dataclass(frozen=True)
class LossConfig:
    """Weights of the loss terms; 0 leaves a term out.

    Attributes:
        magnitude_l1: mean absolute error of the magnitudes of the network's planes.
        spectrogram_l1: mean absolute error of the network's planes (real and imaginary parts).
        spectrogram_mse: mean squared error of the same.
        waveform_l1: mean absolute error of the waveform.
        multi_resolution_stft: mean absolute error of magnitudes at ``windows``, hop a quarter.
        windows: window lengths of the multi-resolution term, in samples.
        si_sdr: minus the scale-invariant SDR of each stem of each chunk, in dB; 0.001 is some weight beside
            ``waveform_l1``. Where the truth is silent it asks for silence.
        perceptual: mean absolute error of the features of ``perceptual_network``; those of ``log_mel`` are
            some hundred times the other terms, so 0.01 is a sensible weight.
        perceptual_network: ``log_mel`` (built in), a TorchScript file, or ``package.module:attribute``.
    """

    magnitude_l1: float = 0.0
    spectrogram_l1: float = 1.0
    spectrogram_mse: float = 0.0
    waveform_l1: float = 1.0
    multi_resolution_stft: float = 0.5
    windows: tuple[int, ...] = (512, 1024, 2048)
    si_sdr: float = 0.0
    perceptual: float = 0.0
    perceptual_network: str = "log_mel"


@dataclass(frozen=True)
class OptimConfig:
    """How the weights are found.

    Attributes:
        length: of the training, all phases of a curriculum together.
        batch: chunks a step, over all processes and accumulated parts together.
        frames: T of a training chunk.
        optimizer: ``adamw`` (decoupled weight decay) or ``adam`` (decay as part of the gradient).
        lr: peak learning rate.
        weight_decay: see ``optimizer``.
        schedule: after the warm-up, ``cosine`` to ``lr_end``; ``decay`` by ``decay_factor`` every
            ``decay_every``; ``plateau`` by ``decay_factor`` when the validation score has not risen for
            ``patience`` validations; or ``constant``.
        lr_end: learning rate at the last step of the cosine, floor of the others.
        decay_factor: see ``schedule``.
        decay_every: see ``schedule``.
        patience: see ``schedule``.
        warmup: linear, from 0 to ``lr``.
        clip: gradient norm limit; 0 for none.
        ema: decay of the weight average that is validated and shipped; 0 for the raw weights.
        accumulate: parts that a process does its share of a batch in, one after another.
        precision: ``fp32``, ``bf16`` or ``fp16`` (autocast; fp16 with loss scaling).
        checkpointing: compute activations again in the backward pass instead of keeping them.
        compile: torch.compile the network.
        strategy: of several processes: ``ddp``, or ``fsdp`` where a model does not fit into one.
        nonfinite: a loss or gradient that is NaN or Inf: ``stop``, or ``skip`` the step and count it.
        seed: of weights, data order and augmentation.
    """

    length: Duration = "300 epochs"
    batch: int = 12
    frames: int = 256
    optimizer: Literal["adamw", "adam"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 1e-4
    schedule: Literal["cosine", "decay", "plateau", "constant"] = "cosine"
    lr_end: float = 1e-5
    decay_factor: float = 0.3
    decay_every: Duration = "1 epoch"
    patience: int = 3
    warmup: Duration = 1000
    clip: float = 1.0
    ema: float = 0.999
    accumulate: int = 1
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    checkpointing: bool = False
    compile: bool = False
    strategy: Literal["ddp", "fsdp"] = "ddp"
    nonfinite: Literal["stop", "skip"] = "stop"
    seed: int = 0


@dataclass(frozen=True)
class PhaseConfig:
    """One phase of a curriculum, from where the one before it ended.

    Attributes:
        until: end of the phase, counted from the start of the training.
        frames: T of a chunk during it; 0 for ``optim.frames``.
        bandwidth_hz: what lies above is filtered out of the stems; 0 for everything.
        loss_without: terms of ``loss`` that do not count yet.
    """

    until: Duration
    frames: int = 0
    bandwidth_hz: float = 0.0
    loss_without: tuple[str, ...] = ()


@dataclass(frozen=True)
class PretrainConfig:
    """Self-supervised pre-training: patches of the normalized features are hidden and guessed.

    Needs no stems: ``data.sources`` may name any one source, ``mixture`` for a folder of audio files.

    Attributes:
        share: of the plane that is hidden; 0 trains separation instead.
        patch_frames: height of a patch.
        patch_bins: width of a patch.
    """

    share: float = 0.0
    patch_frames: int = 8
    patch_bins: int = 64


@dataclass(frozen=True)
class RunConfig:
    """Bookkeeping.

    Attributes:
        log_every: between two rows of the log.
        validate_every: between two validations; ``best.tfx`` is chosen there.
        checkpoint_every: between two checkpoints, which ``--resume`` goes on from.
        keep: checkpoints kept, the newest.
        validation_seconds: of each held-out song, from its middle; 0 for all.
        statistics_batches: batches from which the input normalization is taken.
        pictures: write audio, spectrograms and attention maps of a held-out song with each validation.
        wandb: project to log to as well; empty for none.
    """

    log_every: Duration = 100
    validate_every: Duration = "5 epochs"
    checkpoint_every: Duration = "1 epoch"
    keep: int = 3
    validation_seconds: float = 0.0
    statistics_batches: int = 8
    pictures: bool = True
    wandb: str = ""


@dataclass(frozen=True)
class TrainConfig:
    """The whole configuration."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    curriculum: tuple[PhaseConfig, ...] = ()
    pretrain: PretrainConfig = PretrainConfig()
    run: RunConfig = RunConfig()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return dataclasses.asdict(self)


def steps_of(duration: Duration, epoch_steps: int) -> int:
    """Optimizer steps of a duration; an epoch's fraction is rounded, to 1 step at least.

    Raises:
        ConfigError: neither a number of steps nor ``"N epochs"``, or not above 0.
    """
    try:
        number, unit = (duration, "steps") if isinstance(duration, int) else duration.split()
        amount = float(number)
        known = unit in ("epoch", "epochs") or (unit in ("step", "steps") and amount == int(amount))
        if not (known and 0 < amount < math.inf):
            raise ValueError
    except (ValueError, OverflowError) as error:
        raise ConfigError(f'{duration!r} is no duration: write 500, "500 steps" or "1.5 epochs"') from error
    return max(1, round(amount * (epoch_steps if unit.startswith("epoch") else 1)))
