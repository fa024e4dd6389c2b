"""Channels: their names, and how many become few."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.errors import AudioError

Block = NDArray[np.float32]

# Channel orders of WAV and FLAC, by number of channels; FFmpeg's native names.
LAYOUTS: dict[int, tuple[str, ...]] = {
    1: ("FC",),
    2: ("FL", "FR"),
    3: ("FL", "FR", "FC"),
    4: ("FL", "FR", "BL", "BR"),
    5: ("FL", "FR", "FC", "BL", "BR"),
    6: ("FL", "FR", "FC", "LFE", "BL", "BR"),
    7: ("FL", "FR", "FC", "LFE", "BC", "SL", "SR"),
    8: ("FL", "FR", "FC", "LFE", "BL", "BR", "SL", "SR"),
}

# Names of the bits of a WAVE_FORMAT_EXTENSIBLE speaker mask, from bit 0 on. FLAC and CAF use the same.
MASK_NAMES = (
    *("FL", "FR", "FC", "LFE", "BL", "BR", "FLC", "FRC", "BC", "SL", "SR"),
    *("TC", "TFL", "TFC", "TFR", "TBL", "TBC", "TBR"),
)

# Core Audio's layout tags (CoreAudioBaseTypes.h) whose order is not WAV's, as (tag << 16 | channels).
CORE_AUDIO_LAYOUTS: dict[int, tuple[str, ...]] = {
    113 << 16 | 3: ("FL", "FR", "FC"),
    114 << 16 | 3: ("FC", "FL", "FR"),
    115 << 16 | 4: ("FL", "FR", "FC", "BC"),
    116 << 16 | 4: ("FC", "FL", "FR", "BC"),
    108 << 16 | 4: ("FL", "FR", "BL", "BR"),
    117 << 16 | 5: ("FL", "FR", "FC", "SL", "SR"),
    118 << 16 | 5: ("FL", "FR", "SL", "SR", "FC"),
    119 << 16 | 5: ("FL", "FC", "FR", "SL", "SR"),
    120 << 16 | 5: ("FC", "FL", "FR", "SL", "SR"),
    121 << 16 | 6: ("FL", "FR", "FC", "LFE", "SL", "SR"),
    122 << 16 | 6: ("FL", "FR", "SL", "SR", "FC", "LFE"),
    123 << 16 | 6: ("FL", "FC", "FR", "SL", "SR", "LFE"),
    124 << 16 | 6: ("FC", "FL", "FR", "SL", "SR", "LFE"),
    125 << 16 | 7: ("FL", "FR", "FC", "LFE", "SL", "SR", "BC"),
    133 << 16 | 3: ("FL", "FR", "LFE"),
}
_USE_BITMAP = 1 << 16

# ITU-R BS.775-3, table 2: center and surrounds at -3 dB; a single surround (Cs) is shared by both sides,
# -3 dB each, on top of that; LFE is dropped. Not normalized: louder than full scale is possible. Heights
# count as the surround of their side.
_HALF_POWER = float(np.sqrt(0.5))
_LEFT, _RIGHT, _BOTH = (_HALF_POWER, 0.0), (0.0, _HALF_POWER), (0.5, 0.5)
_TO_STEREO: dict[str, tuple[float, float]] = {
    "FL": (1.0, 0.0),
    "FR": (0.0, 1.0),
    "FC": (_HALF_POWER, _HALF_POWER),
    "LFE": (0.0, 0.0),
    "LFE2": (0.0, 0.0),
    "DL": (1.0, 0.0),
    "DR": (0.0, 1.0),
    **dict.fromkeys(("BL", "SL", "FLC", "WL", "SDL", "TFL", "TBL", "TSL", "BFL"), _LEFT),
    **dict.fromkeys(("BR", "SR", "FRC", "WR", "SDR", "TFR", "TBR", "TSR", "BFR"), _RIGHT),
    **dict.fromkeys(("BC", "TC", "TFC", "TBC", "BFC"), _BOTH),
}


def mask_layout(mask: int, channels: int) -> tuple[str, ...]:
    """Names of the channels that a speaker mask gives; empty where it does not name them all."""
    names = tuple(name for bit, name in enumerate(MASK_NAMES) if mask >> bit & 1)
    return names if len(names) == channels else ()


def core_audio_layout(tag: int, bitmap: int, channels: int) -> tuple[str, ...]:
    """Names of the channels that a CAF or AIFF layout gives; empty where it is not known."""
    if tag == _USE_BITMAP:
        return mask_layout(bitmap, channels)
    names = CORE_AUDIO_LAYOUTS.get(tag, ())
    return names if len(names) == channels else ()


def known_layout(layout: tuple[str, ...], channels: int) -> tuple[str, ...]:
    """The layout if all its names are known, else WAV's order for that many channels; maybe empty."""
    if len(layout) == channels and all(name in _TO_STEREO for name in layout):
        return layout
    return LAYOUTS.get(channels, ())


def downmix(channels: int, model_channels: int, layout: tuple[str, ...]) -> str | None:
    """A sentence about channels that are mixed down; None for mono and stereo."""
    names = known_layout(layout, channels)
    if channels <= 2 or channels == model_channels or not names:
        return None
    lfe = [name for name in names if name in ("LFE", "LFE2")]
    how = "" if names == layout else ", in the usual order, for the file does not name them"
    left = f"; {' and '.join(lfe)} left out" if lfe else ""
    if names != layout and not lfe:
        left = "; if one of them is an LFE, it is in the mix"
    return f"{channels} channels ({' '.join(names)}{how}) mixed down to {model_channels}{left}"


def to_channels(block: Block, channels: int, layout: tuple[str, ...] = ()) -> Block:
    """Bring a block to a model's channels.

    Mono to stereo duplicates; stereo to mono is the mean; 3 to 8 channels to stereo follow ITU-R BS.775;
    those to mono are the mean of that stereo.

    Args:
        block: float32 ``[C, n]``.
        channels: M, 1 or 2.
        layout: names of the C channels, from the file's speaker mask; left out, or with a name that is
            unknown here, WAV's order for C is taken.

    Returns:
        float32 ``[M, n]``; the block itself if C is M.

    Raises:
        AudioError: more than 8 channels.
    """
    count = block.shape[0]
    if count == channels:
        return block
    if count == 1:
        return np.repeat(block, channels, axis=0)
    if count > 2:
        if count not in LAYOUTS:
            raise AudioError(
                f"{count} channels are more than the {max(LAYOUTS)} that can be mixed down to {channels}: "
                "mix the file down to stereo first"
            )
        # Added one after the other: a matrix product rounds as the length of the block makes it.
        mixed = np.zeros((2, block.shape[1]), np.float32)
        for name, row in zip(known_layout(layout, count), block, strict=True):
            mixed += np.array(_TO_STEREO[name], np.float32)[:, np.newaxis] * row
        block = mixed
    return block if channels == 2 else block.mean(axis=0, keepdims=True, dtype=np.float32)


def output_channels(source_channels: int, model_channels: int) -> int:
    """Channels of the files written: mono stays mono, all else takes the model's count."""
    return 1 if source_channels == 1 else model_channels
