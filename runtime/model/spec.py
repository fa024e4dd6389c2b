"""The contract: the frozen dataclasses that every stage shares, and the source of every shape.

A network maps ``mixture [B, 2*C, T, F]`` to ``stems [B, S, 2*C, T, F]``. Planes are the real and the
imaginary part per audio channel, in the order ``re(0), im(0), re(1), im(1), ...``; of the bins the
network sees F, by default all but the Nyquist bin. STFT and iSTFT belong to the host, masks and
normalization to the network, so that a backend knows nothing of families: it gets named tensors and gives
named tensors. What a specification may ask for beside these two:

    takes                       gives
    mixture [B, 2*C, T, F]      stems [B, S, 2*C, T, F]
    samples [B, C, N]           stem_samples [B, S, C, N]   ``samples``: added after the inverse transform
    state.NAME [B, ...]         next.NAME [B, ...]          ``state``: what the next chunk is given
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from tfswa.runtime.documents import from_json
from tfswa.runtime.errors import BundleError
from tfswa.runtime.model.limits import (
    CHUNK_BYTES,
    FRAMES,
    N_FFT,
    SAMPLE_RATE,
    STATE_NAME,
    STATE_SIZES,
    STATES,
    STEMS,
)

SPEC_VERSION = 2
# What version 1 does not say, and what it means by that: section of the spec, name, value.
_SINCE_2: Mapping[tuple[str, str], Any] = {
    ("stft", "window"): "hann",
    ("stft", "padding"): "zero",
    ("stft", "offset"): 0,
    ("stft", "seen"): None,
    ("stft", "zero_below"): 0,
    ("chunk", "context_after"): None,
    ("", "residual_gain"): 1.0,
    ("", "network_stems"): None,
}
# Left out of a document where they say nothing: most networks know nothing of them.
_WHERE_USED: Mapping[tuple[str, str], Any] = {
    ("stft", "fill"): 0,
    ("stft", "endless"): False,
    ("chunk", "early"): 0,
    ("chunk", "short"): 0,
    ("", "samples"): False,
    ("", "state"): {},
}
INPUT, OUTPUT = "mixture", "stems"  # of every network
SAMPLES, STEM_SAMPLES = "samples", "stem_samples"  # of one with a branch of its own for samples
STATE, NEXT = "state.", "next."  # beginnings of the names of what goes from chunk to chunk
AUDIO = "audio"  # all stems of a chunk, by whatever transforms too
ENCODE, DECODE = "encode.onnx", "decode.onnx"  # the transform as graphs, of those bundles that hold them
Shapes = Mapping[str, tuple[int, ...]]
"""By name, without the batch."""
WINDOWS = ("hann", "none")
PADDINGS = ("zero", "reflect")
LEAST_SUM = (
    0.01  # of squared windows; dividing by less lifts rounding and what a network adds by more than 40 dB
)
_LICENSE = "weights_licence"  # as version 1 spells it


def _positive(spec: object, *names: str, kinds: tuple[type, ...] = (int,)) -> None:
    for name in names:
        value: float = getattr(spec, name)
        if not isinstance(value, kinds) or not 0 < value < math.inf:
            raise BundleError(f"{name} {value!r} must be {kinds[0].__name__}, above 0")


def _integers(spec: object, *names: str) -> None:
    for name in names:
        if type(getattr(spec, name)) is not int:
            raise BundleError(f"{name} {getattr(spec, name)!r} must be an integer")


def _boolean(spec: object, name: str) -> None:
    if not isinstance(getattr(spec, name), bool):
        raise BundleError(f"{name} {getattr(spec, name)!r} must be true or false")


def _one_of(spec: object, name: str, known: tuple[str, ...]) -> None:
    if getattr(spec, name) not in known:
        raise BundleError(f"{name} {getattr(spec, name)!r} is not {' or '.join(known)}")


def _at_most(name: str, value: int, limit: int) -> None:
    if value > limit:
        raise BundleError(f"{name} {value} is more than {limit}, what a model may have")


@dataclass(frozen=True)
class StftSpec:
    """How the host turns samples into frames and back.

    Frame t is centered on sample ``offset + t*hop`` and n_fft samples long::

           offset  offset+hop                        samples
        0....|.........|.........|.........|......
        [--- frame 0 ---]
                  [--- frame 1 ---]

    The window is used at analysis and at synthesis; the overlap-add is divided by the sum of squared windows,
    so the round trip is exact.

    Attributes:
        n_fft: window length in samples, even.
        hop: distance of frames in samples, 1 to n_fft.
        sample_rate: in Hz.
        scale: spectra are multiplied by it. The default, 1/32, keeps a full-scale sine at 32 for
            n_fft 4096, so that squares stay far below the largest float16, 65504. ``normalized`` transforms
            of other toolkits have 1 / sqrt(n_fft).
        window: ``hann``, periodic, or ``none``.
        padding: what lies outside the signal: ``zero``, or ``reflect``, the signal mirrored at its first and
            last sample; a signal shorter than that is mirrored again and again.
        offset: center of frame 0, at most hop / 2.
        seen: first and number of the bins that the network sees; None: all but the Nyquist bin.
        zero_below: of the bins that the network gives, those below this one are zero.
        fill: zeros behind a signal that frames cover as if they were of it; ``padding`` begins behind them.
        endless: whether the sum that is divided by is an endless signal's, for networks trained so. Where
            frames lack, at its ends, a signal then comes back quieter, so a chunk's ends have to be context.
    """

    n_fft: int = 4096
    hop: int = 1024
    sample_rate: int = 44_100
    scale: float = 1.0 / 32.0
    window: str = "hann"
    padding: str = "zero"
    offset: int = 0
    seen: tuple[int, int] | None = None
    zero_below: int = 0
    fill: int = 0
    endless: bool = False

    def __post_init__(self) -> None:
        _positive(self, "n_fft", "hop", "sample_rate")
        _positive(self, "scale", kinds=(float, int))
        _at_most("n_fft", self.n_fft, N_FFT)
        _at_most("sample_rate", self.sample_rate, SAMPLE_RATE)
        _one_of(self, "window", WINDOWS)
        _one_of(self, "padding", PADDINGS)
        _integers(self, "offset", "zero_below", "fill")
        _boolean(self, "endless")
        if not 0 <= self.fill <= 2 * self.n_fft:
            raise BundleError(f"fill {self.fill} must be 0 to {2 * self.n_fft}, twice n_fft {self.n_fft}")
        if self.n_fft % 2 or self.hop > self.n_fft:
            raise BundleError(f"n_fft {self.n_fft} and hop {self.hop}: n_fft must be even, hop at most n_fft")
        if not 0 <= 2 * self.offset <= self.hop:
            raise BundleError(f"offset {self.offset} of the first frame must be 0 to half of hop {self.hop}")
        if self.least_sum < LEAST_SUM:
            raise BundleError(
                f"hop {self.hop} of n_fft {self.n_fft}: the sum of squared windows falls to "
                f"{self.least_sum:.2g}, below {LEAST_SUM}, too small to divide by: lower hop"
            )
        self._check_bins()

    def _check_bins(self) -> None:
        if self.seen is not None:
            pair = tuple(self.seen) if isinstance(self.seen, list | tuple) else ()
            if len(pair) != 2 or not all(type(number) is int for number in pair):
                raise BundleError(f"seen {self.seen!r} must be two integers, the first bin and their number")
            object.__setattr__(self, "seen", pair)
        first, count = self.first_bin, self.bins
        if first < 0 or count < 1 or first + count > self.all_bins:
            raise BundleError(
                f"seen {self.seen}, first bin and number, must be among the {self.all_bins} bins "
                f"of n_fft {self.n_fft}"
            )
        if not 0 <= self.zero_below < first + count:
            raise BundleError(
                f"zero_below {self.zero_below} must be 0 to {first + count - 1}, the last bin that is seen"
            )

    @property
    def first_bin(self) -> int:
        """The first bin that the network sees."""
        return 0 if self.seen is None else self.seen[0]

    @property
    def bins(self) -> int:
        """F, the number of bins that the network sees."""
        return self.n_fft // 2 if self.seen is None else self.seen[1]

    @property
    def all_bins(self) -> int:
        """K, the bins that the host has, n_fft / 2 + 1."""
        return self.n_fft // 2 + 1

    @property
    def least_sum(self) -> float:
        """The least sum of squared windows within a signal: between two frames, or before the first one."""
        if self.window == "none":
            return 1.0
        between = 2.0 * math.cos(math.pi * self.hop / (2 * self.n_fft)) ** 4
        first = 1.0 if self.endless else math.cos(math.pi * self.offset / self.n_fft) ** 4
        return min(between, first)

    def frames(self, samples: int) -> int:
        """T, frames that cover a signal so that its samples come back exactly; 0 for an empty one."""
        reach = max(0, samples + self.fill - 2 * self.offset)
        return 0 if samples == 0 else 1 + math.ceil(reach / self.hop)

    def outside(self, samples: int) -> tuple[int, int]:
        """How many samples its frames cover before a signal, and how many after it."""
        before = self.n_fft // 2 - self.offset
        return before, (self.frames(samples) - 1) * self.hop + self.n_fft - before - samples


@dataclass(frozen=True)
class ChunkSpec:
    """How a long signal is cut for a network with a fixed number of frames.

    Of each chunk the first ``context`` and the last ``context_after`` frames are discarded; what remains
    overlaps its neighbor by ``fade`` frames, cross-faded linearly::

        chunk k    |context|<------- kept -------->|after|
        chunk k+1                      |context|<------- kept -------->|after|
                                                |fade|
        distance of chunks = frames - 1 - context - after - fade   (in hops)

    Attributes:
        frames: T, frames per chunk, a multiple of ``multiple``.
        context: frames discarded before what is kept.
        fade: frames over which neighbors are cross-faded.
        multiple: T must be divisible by it, a property of the network.
        context_after: frames discarded after it; None: as many as before. Live use waits for them.
        early: of a network with state: first frames of a chunk that it passes over. They see nothing of what
            comes before the chunk; the state that it is given is that before the frame behind them.
        short: samples by which a chunk ends before the center of its last frame (or ``offset`` behind it),
            less than a hop: of networks that were trained on no whole number of hops.
    """

    frames: int = 256
    context: int = 16
    fade: int = 8
    multiple: int = 64
    context_after: int | None = None
    early: int = 0
    short: int = 0

    def __post_init__(self) -> None:
        _positive(self, "frames", "multiple")
        _at_most("frames", self.frames, FRAMES)
        if self.frames % self.multiple:
            raise BundleError(
                f"chunk of {self.frames} frames is not a multiple of {self.multiple}: "
                f"use {math.ceil(self.frames / self.multiple) * self.multiple}"
            )
        _integers(self, "context", "fade", "early", "short")
        if self.context_after is not None:
            _integers(self, "context_after")
        if min(self.context, self.after, self.fade) < 0 or self.step < max(self.fade, 1):
            context = self.context if self.context_after is None else f"{self.context} + {self.after}"
            raise BundleError(
                f"context {context} and fade {self.fade} leave {self.step} of {self.frames} frames "
                "between chunks: lower them"
            )

    @property
    def after(self) -> int:
        """Frames discarded at the end of a chunk."""
        return self.context if self.context_after is None else self.context_after

    @property
    def step(self) -> int:
        """Distance of chunks, in hops; ``offset`` makes it longer, ``short`` and ``fill`` shorter."""
        return self.frames - 1 - self.context - self.after - self.fade


@dataclass(frozen=True)
class ModelSpec:
    """What a separation model is, apart from its weights.

    Attributes:
        family: name of the network family; None: the network is a graph that others published, whose bundle
            holds it as it is in place of weights.
        hyper: the family's hyper-parameters, JSON values only; of a published graph, how it is fed.
        stems: names of the outputs, in the network's order; they become file names.
        channels: C, audio channels.
        stft: the host's transform.
        chunk: the chunking that the model was made for.
        unseen_stem: the stem that receives those bins of the mixture that the network does not see, so that
            stems sum to the mixture; the last one by default. None: they are zero in what the network gives.
        residual_stem: the stem that is replaced by mixture minus ``residual_gain`` times all others, or None.
        residual_gain: see there; 1 makes the sum of stems the mixture.
        network_stems: what the network gives, in its order; None: all stems. It may lack the residual one.
        samples: whether the network also takes the chunk's samples, and gives samples of its stems, which are
            added after the inverse transform.
        state: of a causal network, what goes from chunk to chunk: shapes by name, without the batch. Zeros
            are given with a signal's first chunk; what it gives is the state before frame ``early`` of the
            next chunk.
        weights_license: license of the weights, SPDX where there is one.
        parameters: number of weights.
        gflop_per_second: billions of floating-point operations per second of audio, chunk overlap left out.
    """

    family: str | None
    stems: tuple[str, ...]
    hyper: Mapping[str, Any] = field(default_factory=dict)
    channels: int = 2
    stft: StftSpec = StftSpec()
    chunk: ChunkSpec = ChunkSpec()
    unseen_stem: str | None = ""
    residual_stem: str | None = None
    residual_gain: float = 1.0
    network_stems: tuple[str, ...] | None = None
    samples: bool = False
    state: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    weights_license: str = "unknown"
    parameters: int = 0
    gflop_per_second: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.hyper, Mapping):
            raise BundleError(f"hyper {self.hyper!r} must be a table of hyper-parameters")
        object.__setattr__(self, "hyper", _as_json_reads(self.hyper))
        if not isinstance(self.stems, tuple) or not all(map(_is_file_name, self.stems)):
            raise BundleError(f"stems {self.stems!r} must be a list of names that can be file names")
        _at_most("the count of stems", len(self.stems), STEMS)
        if not self.stems or len(set(self.stems)) != len(self.stems):
            raise BundleError(f"stems {list(self.stems)} must be distinct names, at least one")
        if self.channels not in (1, 2):
            raise BundleError(f"channels {self.channels!r}: a model has 1 or 2 audio channels")
        if self.unseen_stem == "":
            object.__setattr__(self, "unseen_stem", self.stems[-1])
        for role in ("unseen_stem", "residual_stem"):
            name = getattr(self, role)
            if name is not None and name not in self.stems:
                raise BundleError(f"{role} {name!r} is not one of the stems {list(self.stems)}")
        self._check_network_stems()
        self._check_short()
        self._check_endless()
        _boolean(self, "samples")
        self._check_state()
        numbers = sum(map(math.prod, (*self.takes.values(), *self.gives.values())))
        if 4 * numbers > CHUNK_BYTES:
            raise BundleError(
                f"{len(self.stems)} stems of {self.channels} channels, {self.chunk.frames} frames and "
                f"{self.stft.bins} bins, with {len(self.state)} state tensors, are {4 * numbers} bytes a "
                f"chunk, at most {CHUNK_BYTES} are allowed"
            )

    def _check_network_stems(self) -> None:
        """What the network gives are stems, and all but the residual one."""
        _positive(self, "residual_gain", kinds=(float, int))
        given = self.outputs
        if not isinstance(given, tuple) or len(set(given)) != len(given) or not set(given) <= set(self.stems):
            raise BundleError(
                f"network_stems {given!r} must be distinct ones of the stems {list(self.stems)}"
            )
        for name in self.stems:
            if name not in given and name != self.residual_stem:
                raise BundleError(
                    f"stem {name!r} is neither one of network_stems {list(given)} "
                    f"nor the residual_stem {self.residual_stem!r}"
                )

    def _check_short(self) -> None:
        """It leaves every frame its samples, and chunks their distance."""
        short, hop = self.chunk.short, self.stft.hop
        if not 0 <= short < hop or (short and self.chunk.frames < 2):
            raise BundleError(
                f"short {short} of {self.chunk.frames} frames must be 0 to {hop - 1}, below hop {hop}"
            )
        lacking = short + self.stft.fill - 2 * self.stft.offset
        between = self.chunk.step * hop - lacking
        if lacking > 0 and between < max(self.fade_samples, 1):
            raise BundleError(
                f"short {short} and fill {self.stft.fill} leave {between} samples between chunks of "
                f"{self.chunk.frames} frames, and fade {self.chunk.fade} is {self.fade_samples}: lower fade"
            )
        if (short or self.stft.fill) and self.state:
            raise BundleError(
                f"short {short}, fill {self.stft.fill} and a network with state: frames of one chunk would "
                f"not be on the grid of the next, every {hop} samples: use 0"
            )

    def _check_endless(self) -> None:
        """What windows of the frames that lack would reach is discarded."""
        stft, chunk = self.stft, self.chunk
        if not stft.endless:
            return
        before = (
            stft.n_fft // 2 + stft.offset - stft.hop
        )  # samples under the window of the frame before a chunk
        after = before - stft.fill - chunk.short
        for name, given, quieter in (
            ("context", chunk.context, before),
            ("context_after", chunk.after, after),
        ):
            if given * stft.hop < quieter:
                raise BundleError(
                    f"{name} {given}: {quieter} samples of a chunk are quieter there, as its transform is "
                    f"endless, and {given * stft.hop} are discarded: use {math.ceil(quieter / stft.hop)}"
                )

    def _check_state(self) -> None:
        """Names and shapes; and every frame that goes into the state sees all that is under its window."""
        if not isinstance(self.state, Mapping):
            raise BundleError(f"state {self.state!r} must be a table of shapes by name")
        _at_most("the count of state tensors", len(self.state), STATES)
        state = {name: _shape_of_state(name, self.state[name]) for name in sorted(self.state, key=str)}
        object.__setattr__(self, "state", state)
        chunk, stft = self.chunk, self.stft
        if not state:
            if chunk.early:
                raise BundleError(f"early {chunk.early} frames are for a network with state, this has none")
            return
        if stft.offset:
            raise BundleError(
                f"offset {stft.offset} of the first frame and a network with state: frames of one chunk "
                f"would not be on the grid of the next, every {stft.hop} samples: use offset 0"
            )
        edge = math.ceil(stft.n_fft / 2 / stft.hop)  # frames at an end whose windows leave the chunk
        reach = edge - 1  # frames from one frame to the last whose window is over its center
        for name, given, least in (
            ("early", chunk.early, edge),
            ("context_after", chunk.after, edge + reach),
        ):
            if given < least:
                raise BundleError(
                    f"{name} {given} is too little for a network with state: windows of {stft.n_fft} and hop "
                    f"{stft.hop} need {least} frames"
                )
        if chunk.context != chunk.early + reach:  # or a signal would begin with frames of silence
            raise BundleError(
                f"context {chunk.context} of a network with state must be {chunk.early + reach}, for early "
                f"{chunk.early}, windows of {stft.n_fft} and hop {stft.hop}"
            )

    @property
    def family_in_words(self) -> str:
        """For messages and tables: the family's name, or that there is none."""
        return "published graph" if self.family is None else self.family

    @property
    def takes(self) -> dict[str, tuple[int, ...]]:
        """What the network takes: shapes by name, in its order, without the batch."""
        branch = {SAMPLES: (self.channels, self.chunk_samples)} if self.samples else {}
        return {INPUT: self.input_shape(1)[1:], **branch, **{STATE + n: s for n, s in self.state.items()}}

    @property
    def _is_plain(self) -> bool:
        return not (
            self.chunk.early
            or self.chunk.short
            or self.stft.fill
            or self.stft.endless
            or self.samples
            or self.state
            or self.family is None
        )

    @property
    def beside_planes(self) -> str:
        """What the network takes beside planes, in words; empty for most."""
        names = [name for name in self.takes if name != INPUT]
        more = f" and {len(names) - 2} more" if len(names) > 2 else ""
        return ", ".join(names[:2]) + more

    @property
    def gives(self) -> dict[str, tuple[int, ...]]:
        """What the network gives: shapes by name, in its order, without the batch."""
        branch = (
            {STEM_SAMPLES: (len(self.outputs), self.channels, self.chunk_samples)} if self.samples else {}
        )
        return {OUTPUT: self.output_shape(1)[1:], **branch, **{NEXT + n: s for n, s in self.state.items()}}

    @property
    def transforms(self) -> dict[str, tuple[Shapes, Shapes]]:
        """What the transform as graphs takes and gives: of ``ENCODE``, and of ``DECODE``."""
        chunk = {SAMPLES: (self.channels, self.chunk_samples)}
        network = {name: shape for name, shape in self.gives.items() if name in (OUTPUT, STEM_SAMPLES)}
        audio = {AUDIO: (len(self.stems), self.channels, self.chunk_samples)}
        return {ENCODE: (chunk, {INPUT: self.takes[INPUT]}), DECODE: ({**network, **chunk}, audio)}

    @property
    def outputs(self) -> tuple[str, ...]:
        """The stems that the network gives, in its order."""
        return self.stems if self.network_stems is None else self.network_stems

    @property
    def chunk_samples(self) -> int:
        """N, samples of one chunk."""
        return self.samples_of(self.chunk.frames)

    def samples_of(self, frames: int) -> int:
        """N of a chunk of so many frames."""
        stft = self.stft
        return (frames - 1) * stft.hop + 2 * stft.offset - stft.fill - self.chunk.short

    @property
    def context_samples(self) -> int:
        """Samples discarded at the start of a chunk."""
        return self.chunk.context * self.stft.hop

    @property
    def context_after_samples(self) -> int:
        """Samples discarded at the end of a chunk."""
        return self.chunk.after * self.stft.hop

    @property
    def first_counted(self) -> int:
        """First frame of a chunk that says what the network can do: before it some are passed over."""
        return self.chunk.context if self.state else 0

    @property
    def least_latency_samples(self) -> int:
        """Samples that must be there before the first of them is done, in chunks that keep one hop."""
        return (1 + self.chunk.fade + self.chunk.after) * self.stft.hop

    @property
    def fade_samples(self) -> int:
        """Samples over which neighboring chunks are cross-faded."""
        return self.chunk.fade * self.stft.hop

    def input_shape(self, batch: int) -> tuple[int, int, int, int]:
        """[B, 2*C, T, F]."""
        return (batch, 2 * self.channels, self.chunk.frames, self.stft.bins)

    def output_shape(self, batch: int) -> tuple[int, int, int, int, int]:
        """[B, S, 2*C, T, F], S the number of ``outputs``."""
        return (batch, len(self.outputs), 2 * self.channels, self.chunk.frames, self.stft.bins)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; ``from_dict`` reads it back.

        What version 1 can say is said in it: the hash of a bundle is made of this, and evidence is bound to
        that hash.
        """
        fields: dict[str, Any] = _as_json_reads(dataclasses.asdict(self))
        for (part, name), nothing in _WHERE_USED.items():
            section = fields[part] if part else fields
            if section[name] == nothing:
                del section[name]
        first = dict(fields, stft=dict(fields["stft"]), chunk=dict(fields["chunk"]))
        said = [first[part].pop(name) if part else first.pop(name) for part, name in _SINCE_2]
        if said != list(_SINCE_2.values()) or self.unseen_stem is None or not self._is_plain:
            return {"spec_version": SPEC_VERSION, **fields}
        former = {"nyquist_stem": first.pop("unseen_stem"), _LICENSE: first.pop("weights_license")}
        return {"spec_version": 1, **former, **first}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read what ``to_dict`` wrote.

        Raises:
            BundleError: an unknown version, or fields that are missing, unknown or contradictory.
        """
        if not isinstance(data, Mapping):
            raise BundleError(f"the model's spec is {data!r}, not a table: export the model again")
        fields = dict(data)
        version = fields.pop("spec_version", None)
        if version == 1 and "nyquist_stem" in fields:  # the transform saw all bins but the Nyquist bin
            fields["unseen_stem"] = fields.pop("nyquist_stem")
        elif version not in (1, SPEC_VERSION):
            raise BundleError(
                f"spec version {version} is not 1 to {SPEC_VERSION}, what this tfx reads: "
                "export the model again, or install the tfx that made it"
            )
        if _LICENSE in fields and "weights_license" not in fields:
            fields["weights_license"] = fields.pop(_LICENSE)
        try:
            fields["stft"] = from_json(StftSpec, fields["stft"], "stft")
            fields["chunk"] = from_json(ChunkSpec, fields["chunk"], "chunk")
            for name in ("stems", "network_stems"):
                if isinstance(fields.get(name), list):
                    fields[name] = tuple(fields[name])
            return from_json(cls, fields, "spec")
        except (KeyError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise BundleError(f"the model's spec is incomplete or has unknown fields: {reason}") from error


def _shape_of_state(name: object, shape: object) -> tuple[int, ...]:
    sizes = tuple(shape) if isinstance(shape, list | tuple) else ()
    _at_most("the count of sizes of a state tensor", len(sizes), STATE_SIZES)
    if (
        not _is_file_name(name)
        or len(str(name)) > STATE_NAME
        or not sizes
        or not all(type(size) is int and size > 0 for size in sizes)
    ):
        raise BundleError(
            f"state {str(name)[:STATE_NAME]!r} has the shape {shape!r}: it must be a name of at most "
            f"{STATE_NAME} characters, and sizes above 0"
        )
    return sizes


def _as_json_reads(value: Any) -> Any:
    """Tuples as lists, at every depth, so that a spec equals itself read back."""
    if isinstance(value, Mapping):
        return {key: _as_json_reads(item) for key, item in value.items()}
    return [_as_json_reads(item) for item in value] if isinstance(value, list | tuple) else value


def _is_file_name(name: object) -> bool:
    """Whether a name from a model file is safe in a path: a stem called ``../x`` must not leave a folder."""
    return (
        isinstance(name, str) and name.isprintable() and name.strip(". ") != "" and not set(name) & set("/\\")
    )
