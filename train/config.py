"""The training configuration: one TOML file into frozen dataclasses, strictly.

Unknown keys, wrong types and impossible numbers are errors before anything is loaded. The resolved
configuration is stored with every checkpoint and in the provenance of every bundle.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from tfswa.runtime.errors import ConfigError
from tfswa.train.families import did_you_mean

T = TypeVar("T")


@dataclass(frozen=True)
class ModelConfig:
    """What is trained.

    Attributes:
        family: a family's name.
        stems: outputs, in order.
        hyper: hyper-parameters that differ from the family's defaults.
        residual_stem: stem replaced by mixture minus the others at separation; empty for none.
        licence: licence of the resulting weights, SPDX where there is one.
    """

    family: str = "tfswa_unet"
    stems: tuple[str, ...] = ("vocals", "accompaniment")
    hyper: Mapping[str, Any] = field(default_factory=dict)
    residual_stem: str = ""
    licence: str = "unknown"


@dataclass(frozen=True)
class DataConfig:
    """Where the audio is: one folder a song, one file a source (MUSDB18-HQ's layout).

    Attributes:
        root: folder of song folders; relative to the configuration file.
        sources: per stem the files (without ending) that are summed to it.
        validation: names of the songs held out.
        songs: names of the songs to train on; empty for all that are not held out.
        cache: folder for decoded audio; empty for the user's cache.
        activity_db: a chunk of a source quieter than this (dBFS, RMS) is drawn again, up to ``draws`` times.
        draws: see ``activity_db``.
        workers: loader processes.
    """

    root: str = "data"
    sources: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: {"vocals": ("vocals",), "accompaniment": ("drums", "bass", "other")}
    )
    validation: tuple[str, ...] = ()
    songs: tuple[str, ...] = ()
    cache: str = ""
    activity_db: float = -45.0
    draws: int = 4
    workers: int = 0


@dataclass(frozen=True)
class AugmentConfig:
    """What is done to the sources of a training chunk, each independently.

    Attributes:
        remix: probability that the sources of a chunk come from different songs and places.
        gain_db: gain is uniform in plus or minus this many dB.
        channel_swap: probability of swapping left and right.
        speed: resampling factor, log-uniform in [1/speed, speed]; pitch and tempo move together; 1 for none.
        silence: probability that a source is left out.
    """

    remix: float = 0.5
    gain_db: float = 3.0
    channel_swap: float = 0.5
    speed: float = 1.0
    silence: float = 0.0


@dataclass(frozen=True)
class LossConfig:
    """Weights of the loss terms; 0 leaves a term out.

    Attributes:
        spectrogram_l1: mean absolute error of the network's planes.
        multi_resolution_stft: mean absolute error of magnitudes at ``windows``, hop a quarter.
        waveform_l1: mean absolute error of the waveform.
        windows: window lengths of the multi-resolution term, in samples.
    """

    spectrogram_l1: float = 1.0
    multi_resolution_stft: float = 0.5
    waveform_l1: float = 0.0
    windows: tuple[int, ...] = (512, 1024, 2048)


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with linear warm-up and a cosine to ``lr_end``.

    Attributes:
        steps: optimiser steps in all.
        batch: chunks a step.
        frames: T of a training chunk.
        lr: peak learning rate.
        lr_end: learning rate at the last step.
        warmup: steps of linear warm-up.
        weight_decay: decoupled weight decay.
        clip: gradient norm limit.
        ema: decay of the weight average that is validated and shipped; 0 for the raw weights.
        precision: ``fp32`` or ``bf16`` (autocast).
        seed: of weights, data order and augmentation.
    """

    steps: int = 100_000
    batch: int = 12
    frames: int = 256
    lr: float = 1e-3
    lr_end: float = 1e-5
    warmup: int = 1000
    weight_decay: float = 1e-4
    clip: float = 1.0
    ema: float = 0.999
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = 0


@dataclass(frozen=True)
class RunConfig:
    """Bookkeeping.

    Attributes:
        log_every: steps between two log lines.
        validate_every: steps between two validations; a checkpoint is written with each.
        validation_seconds: of each held-out song, from its middle; 0 for all.
        statistics_batches: batches from which the input normalisation is taken.
    """

    log_every: int = 20
    validate_every: int = 500
    validation_seconds: float = 0.0
    statistics_batches: int = 8


@dataclass(frozen=True)
class TrainConfig:
    """The whole configuration."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    run: RunConfig = RunConfig()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return dataclasses.asdict(self)


def load_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a TOML file and apply ``section.key=value`` overrides, values in TOML's syntax.

    Raises:
        ConfigError: unreadable file, unknown key, wrong type, impossible value.
    """
    try:
        data = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    for override in overrides:
        _override(data, override)
    config = config_from_dict(TrainConfig, data)
    root = Path(config.data.root)
    if not root.is_absolute():
        config = dataclasses.replace(
            config, data=dataclasses.replace(config.data, root=str((path.parent / root).resolve()))
        )
    _check(config)
    return config


def config_from_dict(kind: type[T], data: Mapping[str, Any], where: str = "") -> T:
    """Build a dataclass from nested dictionaries, checking every key and type.

    Raises:
        ConfigError: naming the key, with a suggestion.
    """
    hints = get_type_hints(kind)
    values = {}
    for key, value in data.items():
        name = f"{where}{key}"
        if key not in hints:
            raise ConfigError(f"unknown key {name!r}{did_you_mean(key, list(hints))}")
        values[key] = _convert(name, value, hints[key])
    return kind(**values)


def _convert(name: str, value: Any, hint: Any) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{name} is {value!r}, not a table")
        return config_from_dict(hint, value, f"{name}.")
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(f"{name} is {value!r}{did_you_mean(str(value), [str(a) for a in arguments])}")
        return value
    if origin in (Union, types.UnionType):
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{name} is {value!r}, not a list")
        return tuple(_convert(f"{name}[{i}]", item, arguments[0]) for i, item in enumerate(value))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{name} is {value!r}, not a table")
        return {key: _convert(f"{name}.{key}", item, arguments[1]) for key, item in value.items()}
    if hint is Any:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{name} is {value!r}, a {type(value).__name__}; it must be a {hint.__name__}")
    return value


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """``section.key=value`` strings into nested dictionaries, values in TOML's syntax.

    Raises:
        ConfigError: no '=', or a section that is a value already.
    """
    data: dict[str, Any] = {}
    for override in overrides:
        _override(data, override)
    return data


def _override(data: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise ConfigError(f"override {override!r} has no '=': write section.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word is a string
    *sections, last = key.strip().split(".")
    for section in sections:
        data = data.setdefault(section, {})
        if not isinstance(data, dict):
            raise ConfigError(f"override {override!r}: {section} is not a table")
    data[last] = value


_ABOVE_0 = {
    "optim": ("steps", "batch", "frames", "lr", "clip"),
    "data": ("draws",),
    "run": ("log_every", "validate_every", "statistics_batches"),
}
_FROM_0 = {
    "optim": ("lr_end", "warmup", "weight_decay", "seed"),
    "data": ("workers",),
    "augment": ("gain_db",),
    "run": ("validation_seconds",),
    "loss": ("spectrogram_l1", "multi_resolution_stft", "waveform_l1"),
}


def _check(config: TrainConfig) -> None:
    """Refuse numbers that could only fail later, or train in silence what was not meant."""
    for names, words in ((_ABOVE_0, "above 0"), (_FROM_0, "0 or above")):
        for section, keys in names.items():
            for key in keys:
                value = getattr(getattr(config, section), key)
                if not (0 < value < math.inf or (value == 0 and names is _FROM_0)):
                    raise ConfigError(f"{section}.{key} {value} must be {words}, and finite")
    if not 0 <= config.optim.ema < 1:
        raise ConfigError(f"optim.ema {config.optim.ema} must be in [0, 1)")
    for name in ("remix", "channel_swap", "silence"):
        if not 0 <= getattr(config.augment, name) <= 1:
            raise ConfigError(f"augment.{name} {getattr(config.augment, name)} is not a probability")
    if not 1 <= config.augment.speed < math.inf:
        raise ConfigError(f"augment.speed {config.augment.speed} must be at least 1")
    _check_loss(config.loss)
    _check_stems(config.model, config.data)


def _check_loss(loss: LossConfig) -> None:
    if not (loss.spectrogram_l1 or loss.multi_resolution_stft or loss.waveform_l1):
        raise ConfigError("loss has no term: give one of its weights a value above 0")
    if loss.multi_resolution_stft and not (loss.windows and min(loss.windows) >= 4):
        raise ConfigError(f"loss.windows {list(loss.windows)} must be window lengths, 4 samples or more")


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
    spare = [name for name in data.sources if name not in stems]
    if spare:
        raise ConfigError(
            f"data.sources has {', '.join(spare)}, which model.stems {stems} lacks: the mixture would too"
        )
