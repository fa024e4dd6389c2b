"""One stream of a service: samples come in, stems go out, until the signal ends.

it says                                        is answered by
{"sample_rate": 44100, "channels": 2, ...}     {"type": "ready", ...}
samples, in blocks of any size                 stems, as soon as they are finished
{"type": "end"}                                the rest, then {"type": "done", "samples": N}
{"type": "reset"}                              {"type": "ready", ...}; what was not finished is dropped
anything else, and what goes wrong             {"type": "error", "error": "..."}, and the end

Samples are interleaved, little endian: of ``f32`` floats with full scale 1, of ``s16`` integers. Stems too:
of each sample all stems, of each stem all channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.audio.encoders import to_integers
from tfswa.runtime.documents import parse_json
from tfswa.runtime.errors import TfxError, UsageError, did_you_mean
from tfswa.runtime.failures import Failure
from tfswa.runtime.service.wire import JSON, SAMPLES, Kind, Message
from tfswa.runtime.stream.separating import Separating
from tfswa.runtime.stream.transit import Transit

Audio = NDArray[np.float32]
Format = Literal["f32", "s16"]
Lend = Callable[[str], Separating]
"""A name to a model for one stream, which closes it."""

SEND_BYTES = 1 << 18
_DTYPES: dict[str, np.dtype[Any]] = {"f32": np.dtype("<f4"), "s16": np.dtype("<i2")}
_FULL = 32768.0


class Talk(Protocol):
    """The other side; ``Wire`` is one."""

    def send(self, kind: Kind, content: bytes | memoryview) -> None:
        """Send a message, waiting for room; OSError where nobody is there."""

    def send_json(self, value: Any) -> None:
        """Send a value as JSON."""

    def receive(self) -> Message | None:
        """The next message; None at the end."""


@dataclass(frozen=True)
class Hello:
    """What a stream is to be, as its first message says.

    Attributes:
        model: name under which it is served.
        sample_rate: of samples and stems, in Hz.
        channels: of the samples.
        format: of samples and stems.
        stems: those that are wanted, in this order; None for all.
    """

    model: str
    sample_rate: int
    channels: int
    format: Format = "f32"
    stems: tuple[str, ...] | None = None

    @classmethod
    def parse(cls, content: bytes, default_model: str) -> Hello:
        """Read the first message.

        Raises:
            UsageError: it is no such message.
        """
        said = message_object(content)
        known = ("model", "sample_rate", "channels", "format", "stems")
        for name in said:
            if name not in known:
                close = did_you_mean(name, known) or ":"
                raise UsageError(f"the first message says {name!r}{close} it may say {', '.join(known)}")
        model, format_ = said.get("model", default_model), said.get("format", "f32")
        stems = said.get("stems")
        for name in ("sample_rate", "channels"):
            if type(said.get(name)) is not int:
                raise UsageError(f"{name} of the first message is {said.get(name)!r}: give an integer")
        if not isinstance(model, str):
            raise UsageError(f"model of the first message is {model!r}: give a name")
        if format_ not in list(_DTYPES):
            raise UsageError(f"format of the first message is {format_!r}: choose f32 or s16")
        if stems is not None and not (
            isinstance(stems, list) and stems and all(isinstance(stem, str) for stem in stems)
        ):
            raise UsageError(f"stems of the first message are {stems!r}: give a list of names")
        wanted = None if stems is None else tuple(stems)
        return cls(model, said["sample_rate"], said["channels"], cast(Format, format_), wanted)


def message_object(content: bytes) -> dict[str, Any]:
    """A message that is an object.

    Raises:
        UsageError: it is none.
    """
    try:
        said = parse_json(content)
    except ValueError:
        said = None
    if not isinstance(said, dict):
        raise UsageError("a message is no JSON object")
    return said


class Conversation:
    """A stream from its first message to its last.

    Args:
        talk: the other side.
        lend: gives the model.
        default_model: where the first message names none.
        most_seconds: of a signal.

    Attributes:
        seconds: of audio that came so far, of all signals.
    """

    def __init__(self, talk: Talk, lend: Lend, default_model: str, most_seconds: float):
        self._talk, self._lend, self._default = talk, lend, default_model
        self._most_seconds = most_seconds
        self.seconds = 0.0

    def hold(self) -> None:
        """Answer until the other side ends, or something is wrong, which it is told.

        Raises:
            OSError: the other side is gone.
        """
        try:
            first = self._talk.receive()
            if first is None:
                return
            if first[0] != JSON:
                raise UsageError(
                    "the first message must be JSON: sample_rate, channels, format, model, stems"
                )
            hello = Hello.parse(first[1], self._default)
            with self._lend(hello.model) as separator:
                while self._signal(separator, hello):
                    pass
        except OSError:
            raise
        except Exception as error:
            line = Failure("stream", error).told
            self._talk.send_json({"type": "error", "error": line.removeprefix("stream: ")})

    def _signal(self, separator: Separating, hello: Hello) -> bool:
        """One signal; whether another one is to come."""
        transit = Transit(
            separator, sample_rate=hello.sample_rate, channels=hello.channels, stems=hello.stems
        )
        self._talk.send_json(
            {
                "type": "ready",
                "model": hello.model,
                "stems": list(transit.stems),
                "channels": transit.channels,
                "sample_rate": hello.sample_rate,
                "format": hello.format,
            }
        )
        samples = _Samples(hello)
        while (message := self._talk.receive()) is not None:
            kind, content = message
            if kind == SAMPLES:
                block = samples.taken(content)
                if (transit.received + block.shape[1]) / hello.sample_rate > self._most_seconds:
                    raise UsageError(f"the signal is longer than {self._most_seconds:g} s, the most here")
                self.seconds += block.shape[1] / hello.sample_rate
                self._give(transit.push(block), hello)
                continue
            asked = message_object(content).get("type")
            if asked == "reset":
                return True
            if asked != "end":
                raise UsageError(f"a message of type {asked!r}: send samples, end or reset")
            samples.check_whole()
            self._give(transit.flush(), hello)
            self._talk.send_json({"type": "done", "samples": transit.received})
            return True  # the next signal of the same kind may follow
        return False

    def _give(self, stems: Audio, hello: Hello) -> None:
        """Send stems ``[S, C, m]``, in messages that are not too long."""
        count, channels, samples = stems.shape
        frames = stems.transpose(2, 0, 1).reshape(samples, count * channels)
        values = frames if hello.format == "f32" else to_integers(frames, 16)
        coded = np.ascontiguousarray(values, dtype=_DTYPES[hello.format])
        most = max(1, SEND_BYTES // (count * channels * coded.itemsize))
        for start in range(0, len(coded), most):
            self._talk.send(SAMPLES, coded[start : start + most].tobytes())


class _Samples:
    """Bytes in blocks of any size to samples; what is cut within a sample waits for the rest."""

    def __init__(self, hello: Hello):
        self._dtype, self._channels = _DTYPES[hello.format], hello.channels
        self._rest = b""

    def taken(self, content: bytes) -> Audio:
        """The next whole samples ``[C, n]``."""
        held = self._rest + content
        size = self._dtype.itemsize * self._channels
        whole = len(held) - len(held) % size
        self._rest = held[whole:]
        values = np.frombuffer(held[:whole], self._dtype).reshape(-1, self._channels).T
        found: Audio = values.astype(np.float32)
        return found / np.float32(_FULL) if self._dtype.kind == "i" else found

    def check_whole(self) -> None:
        """Refuse a signal that ends within a sample.

        Raises:
            TfxError: it does.
        """
        if self._rest:
            size = self._dtype.itemsize * self._channels
            raise TfxError(
                f"the signal ends within a sample: {len(self._rest)} of its {size} bytes came; "
                "send all channels of all samples"
            )
