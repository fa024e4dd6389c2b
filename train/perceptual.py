"""Features for the perceptual loss: log-mel spectra, or a network of the user's.

A user's network takes waveforms ``[M, C, N]`` at the model's rate and gives a tensor or several, each with
M first. It is tried once when it is loaded, because a network that is not differentiable, or that mixes
the items of a batch, would otherwise train on in silence.
"""

from __future__ import annotations

import importlib
import math
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tfswa.runtime.errors import BundleError, ConfigError
from tfswa.runtime.files.hashes import sha256_of
from tfswa.runtime.model import trust
from tfswa.runtime.model.archive import check_archive
from tfswa.train.strict import suggestion

Features = Callable[[Tensor], list[Tensor]]
"""``[M, C, N]`` -> layers, each ``[M, ...]``."""

LOG_MEL = "log_mel"
PROBE_SECONDS = 0.5


def perceptual_network(name: str, sample_rate: int, device: torch.device) -> Features:
    """Find a feature extractor, freeze it, and try it on half a second of stereo noise.

    Args:
        name: ``log_mel``, the path of a TorchScript file, or ``package.module:attribute``: an
            ``nn.Module``, or what gives one when called without arguments.
        sample_rate: of the waveforms, in Hz.
        device: where it runs.

    Raises:
        ConfigError: nothing of that name, or a network that cannot serve as a loss.
        UntrustedError: a file that nobody vouches for.
    """
    if name == LOG_MEL:
        return LogMel(sample_rate, device)
    network = _from_file(name, device) if _is_file(name) else _from_module(name)
    try:
        # Not requires_grad_ of the network as a whole: TorchScript has none.
        for parameter in network.to(device).eval().parameters():
            parameter.requires_grad_(False)
    except RuntimeError as error:
        raise ConfigError(f"{_what(name)} cannot be moved to {device}: {_reason(error)}") from error

    def features(wave: Tensor) -> list[Tensor]:
        out = network(wave)
        return list(out) if isinstance(out, tuple | list) else [out]

    _probe(name, features, sample_rate, device)
    return features


def check_network(name: str, *, trusted: bool = False) -> None:
    """See that a feature extractor may be run, before anything opens it and before minutes of work.

    A TorchScript file is a program. A module is code that the user has installed, as all of Python is.

    Args:
        name: see ``perceptual_network``.
        trusted: run the file, and from now on, though this machine did not make it.

    Raises:
        ConfigError: no such file, or no archive of torch.
        UntrustedError: nobody vouches for the file, see ``tfswa.runtime.model.trust``.
    """
    if name == LOG_MEL or not _is_file(name):
        return
    if not Path(name).is_file():
        raise ConfigError(
            f"{_what(name)} is no file: write {LOG_MEL}, the path of a TorchScript file, "
            "or package.module:attribute"
        )
    sha256 = sha256_of(Path(name))
    if trusted:
        trust.trust(sha256)
    trust.check_trusted("torchscript", _what(name), sha256, instead=LOG_MEL)
    try:
        check_archive(Path(name))
    except BundleError as error:
        raise ConfigError(
            f"{_what(name)} is not TorchScript ({error}): save it with torch.jit.save"
        ) from error


class LogMel:
    """Log of mel-band powers, natural: ``[M, C, N] -> [[M, C, BANDS, T]]``.

    The powers are those of the plain STFT with a Hann window, not normalized: a full-scale sine at the
    center of a band has ``(WINDOW / 4) ** 2``, and ``FLOOR`` is white noise of about -79 dBFS.

    Args:
        sample_rate: in Hz.
        device: where it runs.
    """

    BANDS = 80
    WINDOW = 2048
    HOP = 512
    FLOOR = 1e-5

    def __init__(self, sample_rate: int, device: torch.device):
        self.window = torch.hann_window(self.WINDOW, device=device)
        self.bank = mel_bank(self.BANDS, self.WINDOW, sample_rate).to(device)

    def __call__(self, wave: Tensor) -> list[Tensor]:
        """See the class."""
        flat = wave.flatten(0, 1)  # [M*C, N]
        spectrum = torch.stft(
            flat, self.WINDOW, self.HOP, window=self.window, pad_mode="constant", return_complex=True
        )
        power = spectrum.real.square() + spectrum.imag.square()  # [M*C, F, T]
        bands = (self.bank @ power + self.FLOOR).log()
        return [bands.reshape(*wave.shape[:2], *bands.shape[1:])]


def mel_bank(bands: int, n_fft: int, sample_rate: int) -> Tensor:
    r"""Triangles of height 1, evenly spaced in mel from 0 to half the rate: ``[bands, n_fft // 2 + 1]``.

    Mel is HTK's, ``2595 log10(1 + f / 700)`` (O'Shaughnessy, Speech Communication, 1987)::

        1 |    /\    /\          band k rises from edge k to its center, edge k + 1,
          |   /  \  /  \         and falls to edge k + 2, the center of band k + 1
        0 |__/____\/____\__ f
    """
    top = 2595 * math.log10(1 + sample_rate / 2 / 700)
    mel = torch.linspace(0, top, bands + 2, dtype=torch.float64)
    edges = 700 * (10 ** (mel / 2595) - 1)
    bins = torch.arange(n_fft // 2 + 1, dtype=torch.float64) * sample_rate / n_fft
    left, center, right = (edges[k : k + bands, None] for k in range(3))
    slopes = torch.minimum((bins - left) / (center - left), (right - bins) / (right - center))
    return slopes.clamp_min(0).float()


def _is_file(name: str) -> bool:
    """Whether a name means a file: it is there, or it is no name of a module's."""
    return Path(name).exists() or not re.fullmatch(r"[\w.]+:[\w.]+", name)


def _from_file(name: str, device: torch.device) -> Any:
    check_network(name)
    with warnings.catch_warnings():
        # torch 2.13 deprecates all of torch.jit; it is still the format that needs no code beside it.
        warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", DeprecationWarning)
        try:
            return torch.jit.load(name, map_location=device)  # type: ignore[no-untyped-call]
        except (RuntimeError, ValueError) as error:
            raise ConfigError(
                f"{_what(name)} is not TorchScript ({_reason(error)}): save it with torch.jit.save"
            ) from error


def _from_module(name: str) -> nn.Module:
    place, _, attribute = name.partition(":")
    try:
        thing: Any = importlib.import_module(place)
    except Exception as error:  # a module may fail in any way while it is imported
        reason = f"{type(error).__name__}: {_reason(error)}"
        raise ConfigError(
            f"{_what(name)}: {place} cannot be imported ({reason}): install it, or put it on PYTHONPATH"
        ) from error
    for part in attribute.split("."):
        if not hasattr(thing, part):
            known = [key for key, value in vars(thing).items() if callable(value) and key[0] != "_"]
            hint = suggestion(part, known) if known else ": it defines nothing that gives a network"
            raise ConfigError(f"{_what(name)}: {place} has no {part!r}{hint}")
        thing = getattr(thing, part)
    if callable(thing) and not isinstance(thing, nn.Module):
        try:
            thing = thing()
        except Exception as error:  # the user's code, which may fail in any way
            raise ConfigError(
                f"{_what(name)} fails when it is called without arguments "
                f"({type(error).__name__}: {_reason(error)}): give a function that needs none"
            ) from error
    if not isinstance(thing, nn.Module):
        raise ConfigError(
            f"{_what(name)} gives {type(thing).__name__}, not an nn.Module: name a module, "
            "or a function without arguments that returns one"
        )
    return thing


def _probe(name: str, features: Features, sample_rate: int, device: torch.device) -> None:
    """Refuse what cannot serve: two items go in, the gradient of the first one's features comes back."""
    samples = int(PROBE_SECONDS * sample_rate)
    noise = 0.1 * torch.randn((2, 2, samples), generator=torch.Generator().manual_seed(0))
    wave = noise.to(device).requires_grad_()
    try:
        with torch.enable_grad():
            layers = features(wave)
    except Exception as error:  # the user's network, which may fail in any way
        raise ConfigError(
            f"{_what(name)} fails on a waveform {list(wave.shape)} ({type(error).__name__}: "
            f"{_reason(error)}): it must take [M, channels, samples] at {sample_rate} Hz"
        ) from error
    _check_layers(name, layers, len(wave))
    useful = [layer[0].abs().sum() for layer in layers if layer.requires_grad]
    gradient = torch.zeros_like(wave)
    if useful:
        gradient = torch.autograd.grad(sum(useful), wave, allow_unused=True)[0]  # type: ignore[arg-type]
    if gradient is None or not gradient[0].any():
        raise ConfigError(
            f"{_what(name)} is not differentiable: the gradient from its {len(layers)} layers to the "
            "waveform is 0; leave out no_grad, detach and rounding"
        )
    if not bool(torch.isfinite(gradient).all()):
        raise ConfigError(
            f"{_what(name)} has a gradient that is NaN or Inf on noise: add a floor to its logs and roots"
        )
    if gradient[1].any():
        raise ConfigError(
            f"{_what(name)} mixes the items of a batch: the features of item 0 depend on item 1; "
            "call eval() before you trace it, and normalize items each on its own"
        )


def _check_layers(name: str, layers: list[Any], items: int) -> None:
    if not layers:
        raise ConfigError(f"{_what(name)} gives 0 tensors: it must give 1 or more")
    for index, layer in enumerate(layers):
        if not isinstance(layer, Tensor):
            raise ConfigError(
                f"{_what(name)} gives {type(layer).__name__} as layer {index}, not a tensor: "
                "return a tensor, or a tuple or list of tensors"
            )
        if layer.ndim < 1 or layer.shape[0] != items or not layer.numel():
            raise ConfigError(
                f"{_what(name)} gives layer {index} as {list(layer.shape)} for {items} waveforms: "
                f"it must be [{items}, ...], and not empty"
            )
        if not bool(torch.isfinite(layer).all()):
            raise ConfigError(
                f"{_what(name)} gives NaN or Inf in layer {index} on noise of -20 dBFS: check its weights"
            )


def _what(name: str) -> str:
    return f"loss.perceptual_network {name!r}"


def _reason(error: Exception) -> str:
    """Last line of a message: TorchScript puts its own stack above it."""
    return (str(error).strip().splitlines() or ["no reason given"])[-1].partition(". ")[0]
