"""What numbers a training configuration may hold: each key alone, and those that must agree."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tfswa.runtime.errors import ConfigError
from tfswa.train.config import (
    AugmentConfig,
    DataConfig,
    Duration,
    LossConfig,
    ModelConfig,
    PhaseConfig,
    SetConfig,
    TrainConfig,
    steps_of,
)

_ABOVE_0 = {
    "optim": ("batch", "frames", "lr", "accumulate", "patience", "decay_factor"),
    "data": ("draws", "cache_gb"),
    "run": ("statistics_batches", "keep"),
    "pretrain": ("patch_frames", "patch_bins"),
}
_FROM_0 = {
    "optim": ("lr_end", "weight_decay", "seed", "clip"),
    "data": ("workers",),
    "augment": ("pitch_semitones", "frequency_mask_hz", "time_mask_seconds"),
    "run": ("validation_seconds",),
    "loss": (
        *("magnitude_l1", "spectrogram_l1", "spectrogram_mse", "waveform_l1"),
        *("multi_resolution_stft", "si_sdr", "perceptual"),
    ),
}
_PROBABILITIES = (
    *("remix", "remix_sources", "balance", "tempo", "pitch", "speed", "gain", "frequency_mask", "time_mask"),
    *("channel_swap", "silence", "formant", "equalizer", "compression", "clipping", "doubling", "delay"),
    *("reverb", "width", "mono", "codec"),
)
# Of augment: least and most that a range may hold.
_RANGES = {
    "compression_ratio": (1.0, 100.0),
    "clipping_db": (0.0, 60.0),
    "delay_seconds": (0.001, 10.0),
    "reverb_seconds": (0.01, 20.0),
    "reverb_share": (0.0, 1.0),
    "width_range": (0.0, 4.0),
    "codec_kbits": (24.0, 320.0),
    "balance_db": (-60.0, 60.0),
}
_DURATIONS = {
    "optim": ("length", "decay_every"),
    "run": ("log_every", "validate_every", "checkpoint_every"),
}


def check_bounds(config: TrainConfig) -> None:
    """Refuse numbers that could only fail later, or train in silence what was not meant.

    Raises:
        ConfigError: naming the key, its value, and what it may be.
    """
    for names, words in ((_ABOVE_0, "above 0"), (_FROM_0, "0 or above")):
        for section, keys in names.items():
            for key in keys:
                value = getattr(getattr(config, section), key)
                if not (0 < value < math.inf or (value == 0 and names is _FROM_0)):
                    raise ConfigError(f"{section}.{key} {value} must be {words}, and finite")
    for section, keys in _DURATIONS.items():
        for key in keys:
            _check_duration(f"{section}.{key}", getattr(getattr(config, section), key))
    if config.optim.warmup != 0:
        _check_duration("optim.warmup", config.optim.warmup)
    if not 0 <= config.optim.ema < 1:
        raise ConfigError(f"optim.ema {config.optim.ema} must be in [0, 1)")
    if not config.optim.decay_factor < 1:
        raise ConfigError(f"optim.decay_factor {config.optim.decay_factor} must be below 1")
    if config.model.lora_rank < 0 or (config.model.lora and not config.model.lora_rank):
        raise ConfigError(
            f"model.lora_rank {config.model.lora_rank} and model.lora {list(config.model.lora)}: a rank "
            "above 0 goes with names, 0 without any"
        )
    if config.model.lora_rank and config.optim.strategy == "fsdp":
        raise ConfigError("model.lora_rank and optim.strategy fsdp do not go together: use ddp")
    _check_augment(config.augment)
    _check_sets(config.data.sets)
    _check_curriculum(config.curriculum)
    if not 0 <= config.pretrain.share < 1:
        raise ConfigError(f"pretrain.share {config.pretrain.share} must be in [0, 1)")
    if config.pretrain.share:
        if any(phase.loss_without for phase in config.curriculum):
            raise ConfigError(
                "curriculum.loss_without is for separation: pre-training has one term, leave it out"
            )
        _check_unlabeled(config)
    else:
        _check_loss(config.loss)
        _check_left_out(config.curriculum, config.loss)
        _check_stems(config.model, config.data)


def _check_duration(name: str, value: Duration) -> None:
    try:
        steps_of(value, 1)
    except ConfigError as error:
        raise ConfigError(f"{name} {error}") from error


def _check_augment(augment: AugmentConfig) -> None:
    for name in _PROBABILITIES:
        if not 0 <= getattr(augment, name) <= 1:
            raise ConfigError(f"augment.{name} {getattr(augment, name)} is not a probability")
    for name, value in augment.without.items():
        if not 0 <= value <= 1:
            raise ConfigError(f"augment.without.{name} {value} is not a probability")
    for name, (least, most) in _RANGES.items():
        low, high = getattr(augment, name)
        if not least <= low <= high <= most:
            raise ConfigError(
                f"augment.{name} [{low}, {high}] must rise, and be between {least:g} and {most:g}"
            )
    for name, most in (("formant_semitones", 12.0), ("equalizer_db", 24.0)):
        if not 0 <= getattr(augment, name) <= most:
            raise ConfigError(f"augment.{name} {getattr(augment, name)} must be between 0 and {most:g}")
    for name, least in (("tempo_range", 0.25), ("speed_range", 0.25), ("gain_range", 0.0)):
        low, high = getattr(augment, name)
        if not least <= low <= high < math.inf or (least and high > 1 / least):
            bounds = f"{least:g} or above" if not least else f"between {least:g} and {1 / least:g}"
            raise ConfigError(f"augment.{name} [{low}, {high}] must rise, and be {bounds}")
    if augment.pitch_semitones > 12:
        raise ConfigError(f"augment.pitch_semitones {augment.pitch_semitones} is more than an octave, 12")


def _check_sets(sets: Sequence[SetConfig]) -> None:
    for index, one in enumerate(sets):
        if not one.songs:
            raise ConfigError(f"data.sets[{index}].songs is empty: name songs, or patterns of names")
        for stem, share in one.shares.items():
            if not 0 <= share < math.inf:
                raise ConfigError(f"data.sets[{index}].shares.{stem} {share} must be 0 or above, and finite")


def _check_curriculum(curriculum: Sequence[PhaseConfig]) -> None:
    for index, phase in enumerate(curriculum):
        _check_duration(f"curriculum[{index}].until", phase.until)
        if phase.frames < 0 or not 0 <= phase.bandwidth_hz < math.inf:
            raise ConfigError(
                f"curriculum[{index}] has frames {phase.frames}, bandwidth_hz {phase.bandwidth_hz}: "
                "both must be 0 or above"
            )


def _check_loss(loss: LossConfig) -> None:
    if not any(getattr(loss, name) for name in _FROM_0["loss"]):
        raise ConfigError("loss has no term: give one of its weights a value above 0")
    if loss.multi_resolution_stft and not (loss.windows and min(loss.windows) >= 4):
        raise ConfigError(f"loss.windows {list(loss.windows)} must be window lengths, 4 samples or more")


def _check_left_out(curriculum: Sequence[PhaseConfig], loss: LossConfig) -> None:
    terms = [name for name in _FROM_0["loss"] if getattr(loss, name)]
    for index, phase in enumerate(curriculum):
        key = f"curriculum[{index}].loss_without"
        for name in phase.loss_without:
            if name not in terms:
                raise ConfigError(f"{key} has {name!r}, no term of the loss, which has {', '.join(terms)}")
        if set(terms) <= set(phase.loss_without):
            raise ConfigError(f"{key} leaves no term of the loss, which has {', '.join(terms)}")


def _check_unlabeled(config: TrainConfig) -> None:
    if len(config.data.sources) != 1:
        raise ConfigError(
            f"data.sources has {', '.join(config.data.sources)}: pre-training hears one signal, "
            'for example sources = {mixture = ["mixture"]}'
        )


def _check_stems(model: ModelConfig, data: DataConfig) -> None:
    stems = list(model.stems)
    if not stems or len(set(stems)) != len(stems):
        raise ConfigError(f"model.stems {stems} must be distinct names, at least one")
    if model.residual_stem and model.residual_stem not in stems:
        raise ConfigError(f"model.residual_stem {model.residual_stem!r} is not one of model.stems {stems}")
    for stem in stems:
        if not data.sources.get(stem):
            raise ConfigError(
                f"data.sources names no files for stem {stem!r}; it has {', '.join(data.sources)}"
            )
    # The mixture is the sum of the stems: what no stem holds, the network would never hear.
    for index, one in enumerate(data.sets):
        for stem in one.shares:
            if stem not in stems:
                raise ConfigError(f"data.sets[{index}].shares has {stem!r}, which is not one of {stems}")
    spare = [name for name in data.sources if name not in stems]
    if spare:
        raise ConfigError(
            f"data.sources has {', '.join(spare)}, which model.stems {stems} lacks: the mixture would too"
        )
