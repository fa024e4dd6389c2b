"""Bandit as it is published, in both versions: what names and shapes of a state dictionary say about it.

The first, BandIt Plus, has all in ``bsrnn.``; the second, Bandit v2, has a band's numbers in another order,
and names some weights twice. What neither weights nor a configuration tell is as each version was
published.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tfswa.runtime.errors import BundleError, ConfigError
from tfswa.runtime.model.spec import StftSpec
from tfswa.train.blocks.bands import averages
from tfswa.train.families.bandit import musical_members
from tfswa.train.importers.kinds import Kind, Reading, Settings, Shapes, configured
from tfswa.train.importers.shapes import DIGITS, hann, numbered, shape_of

N_FFT, HOP = 2048, 512
CELLS = {3: "gru", 4: "lstm"}  # by the number of gates
RATES = {"planes": 44_100, "pairs": 48_000}  # of the first and of the second version
PADDINGS = {"planes": "constant", "pairs": "reflect"}
OURS = {"constant": "zero", "reflect": "reflect"}
FIXED = {  # of a configuration: all that is known here
    "in_channel": 1,
    "in_channels": 1,
    "bidirectional": True,
    "hidden_activation": "Tanh",
    "complex_mask": True,
    "mult_add_mask": False,
    "normalize_channel_independently": False,
    "window_fn": "hann_window",
    "power": None,
    "center": True,
    "onesided": True,
}
START = r"(?:.*\.)?"
PARTS = (  # of names, and what they are here
    (r"^bsrnn\.", ""),
    (r"^band_split\.norm_fc_modules\.(\d+)\.(?:norm|combined\.0)\.", r"band_split.\1.0."),
    (r"^band_split\.norm_fc_modules\.(\d+)\.(?:fc|combined\.1)\.", r"band_split.\1.1."),
    (r"^tf_model\.seqband\.(\d+)\.", r"turns.\1."),
    (r"^mask_estim\.([^.]+)\.norm_mlp\.(\d+)\.(?:norm|combined\.0)\.", r"masks.\1.\2.0."),
    (r"^mask_estim\.([^.]+)\.norm_mlp\.(\d+)\.(?:hidden|combined\.1)\.0\.", r"masks.\1.\2.1."),
    (r"^mask_estim\.([^.]+)\.norm_mlp\.(\d+)\.(?:output|combined\.2)\.0\.", r"masks.\1.\2.3."),
)


def read_bandit(shapes: Shapes, settings: Settings) -> Reading:
    """See ``Kind.read``.

    Raises:
        BundleError: shapes that no such network has.
        ConfigError: a configuration that contradicts them, or of what is not known here.
    """
    section = "kwargs" if isinstance(settings.config.get("kwargs"), Mapping) else "model"
    _check(section, settings)
    plain = {_plain(name): tuple(shape) for name, shape in shapes.items()}
    second = any(".norm_fc_modules.0.combined." in name for name in shapes)
    order = "pairs" if second else "planes"
    turns = _turns(plain)
    stems = _stems(plain, settings)
    first = f"turns.{turns[0]}."
    gates, hidden = shape_of(plain, f"{first}rnn.weight_hh_l0", 2)
    if gates // hidden not in CELLS or f"{first}rnn.weight_hh_l0_reverse" not in plain:
        raise BundleError(f"{first}rnn is no bidirectional GRU or LSTM: it is another network")
    stft, shares = _transform(plain, order, section, settings)
    if len(stems) * len(shares) > len(shapes):  # before a network of so many is built
        raise BundleError(
            f"{len(stems)} stems of {len(shares)} bands, and {len(shapes)} names: some are missing"
        )
    hyper: dict[str, Any] = {
        "dim": shape_of(plain, f"{first}norm.weight", 1)[0],
        "depth": len(turns) // 2,
        "bands": len(shares),
        "cell": CELLS[gates // hidden],
        "hidden": hidden,
        "mask_hidden": shape_of(plain, f"masks.{stems[0]}.0.1.weight", 2)[0],
        "order": order,
        # Files of parameters alone lack the shares; of the first version every other file holds them.
        "mean": settings.flag(
            section, "use_freq_weights", not second or any("freq_weights/" in name for name in shapes)
        ),
    }
    places = {
        **{f"turns.{number}.": f"turns.{place}." for place, number in enumerate(turns)},
        **{f"masks.{stem}.": f"masks.{place}." for place, stem in enumerate(stems)},
    }

    def rename(name: str) -> str:
        name = _plain(name)
        start = ".".join(name.split(".")[:2]) + "."
        return places.get(start, start) + name[len(start) :]

    return Reading(
        "bandit",
        hyper,
        stft,
        settings.chunks(stft),
        settings.number("audio", "num_channels", 2),
        len(stems),
        rename=rename,
        constants={r"i?stft\.window": hann(stft.n_fft), **shares},
        default_stems=tuple(stems),
    )


def _check(section: str, settings: Settings) -> None:
    bands = settings.of(section, "band_specs", settings.of(section, "band_type", "musical"))
    if not isinstance(bands, str) or "musical" not in bands:
        raise ConfigError(
            f"bands {bands!r} of the configuration, of a Bandit only musical ones are known here"
        )
    for name, known in FIXED.items():
        if (said := settings.of(section, name, known)) != known:
            raise ConfigError(f"{section}.{name} {said!r} of the configuration, only {known!r} is known here")
    if (said := settings.of(section, "wkwargs")) and said != {"periodic": True}:
        raise ConfigError(
            f"{section}.wkwargs {said!r} of the configuration, only a periodic window is known here"
        )


def _plain(name: str) -> str:
    """The network's name, but that turns may be numbered otherwise, and stems are named."""
    for pattern, ours in PARTS:
        name = re.sub(pattern, ours, name)
    return name


def _turns(plain: Shapes) -> list[int]:
    """Numbers of the turns: the second version counts what lies between them too.

    Raises:
        BundleError: they do not go in pairs, along time and along bands.
    """
    numbers = (match[1] for name in plain if (match := re.match(r"turns\.(\d+)\.", name)))
    found = sorted({int(number[:DIGITS]) for number in numbers})
    if not found or len(found) % 2:
        raise BundleError(f"{len(found)} recurrent layers, a Bandit has pairs of them: it is another network")
    return found


def _stems(plain: Shapes, settings: Settings) -> list[str]:
    """The stems by their names in the file, as options or the configuration order them.

    Raises:
        BundleError: there are none.
        ConfigError: these say other names.
    """
    found = list(dict.fromkeys(name.split(".")[1] for name in plain if name.startswith("masks.")))
    if not found:
        raise BundleError("no name is of a mask: weights are missing, or it is another network")
    said = settings.stems or configured(settings, len(found))
    if said is None:
        return found
    wanted = list(said[: len(found)])
    if set(wanted) != set(found):
        raise ConfigError(
            f"stems {','.join(said)} are named, those of the file are {','.join(found)}: "
            "name these, in any order"
        )
    return wanted


def _transform(
    plain: Shapes, order: str, section: str, settings: Settings
) -> tuple[StftSpec, dict[str, Any]]:
    """The transform, and the shares of masks that a file may hold, by patterns of their names.

    Raises:
        ConfigError: bands of the file that are not musical ones of this transform.
    """
    sizes = [
        shape_of(plain, f"band_split.{band}.0.weight", 1)[0]
        for band in range(numbered(plain, r"band_split\.(\d+)\."))
    ]
    n_fft = settings.stft.get("n_fft")
    if type(n_fft) is not int or n_fft < 1:  # the transform refuses what was said
        n_fft = settings.number(section, "n_fft", N_FFT)
    padding = settings.of(section, "pad_mode", PADDINGS[order])
    if padding not in list(OURS):  # which a list or a table may be compared with too
        raise ConfigError(f"{section}.pad_mode {padding!r} of the configuration is none of {', '.join(OURS)}")
    if (said := settings.of(section, "win_length", n_fft)) != n_fft:
        raise ConfigError(
            f"{section}.win_length {said!r} of the configuration is not n_fft {n_fft}: "
            "windows shorter than the transform are not known here"
        )
    stft = settings.transform(
        n_fft=n_fft,
        hop=settings.number(section, "hop_length", HOP),
        sample_rate=settings.number("audio", "sample_rate", settings.number(section, "fs", RATES[order])),
        scale=(3 / 8 * n_fft) ** -0.5 if settings.flag(section, "normalized", True) else 1.0,
        padding=OURS[padding],
        seen=(0, n_fft // 2 + 1),
    )
    members = musical_members(stft, len(sizes)) if stft.bins <= sum(sizes) else []
    if [2 * len(bins) for bins in members] != sizes:
        raise ConfigError(
            f"{len(sizes)} bands of {sum(sizes)} numbers in all, musical ones of n_fft {n_fft} are others: "
            "see to n_fft in --config"
        )
    _, share = averages(members, stft.bins)
    return stft, {  # a bin has as much of each of its bands
        rf"{START}freq_weights/{band}": share[0, bins] for band, bins in enumerate(members)
    }


BANDIT = Kind(
    "Bandit",
    (
        r"(?:bsrnn\.)?band_split\.norm_fc_modules\.0\.",
        r"(?:bsrnn\.)?tf_model\.seqband\.0\.",
        r"(?:bsrnn\.)?mask_estim\.",
    ),
    read_bandit,
    beyond={
        r"(?:bsrnn\.)?tf_model\.seqband\.\d+\.\d+\.": "both axes side by side",
        r".*\.output2\.": "masks that add",
    },
)
