"""Streams of a service: blocks of any size, formats, several signals, and what may be said wrongly."""

from __future__ import annotations

import json
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray
from streams import PlainModel

from tfswa.runtime.errors import TfxError, UsageError, did_you_mean
from tfswa.runtime.service.conversation import Conversation
from tfswa.runtime.service.wire import HEAD, JSON, MOST_BYTES, SAMPLES, Wire

Audio = NDArray[np.float32]
HELLO = {"sample_rate": 8000, "channels": 2}


class Caller:
    """The other side of a conversation that a thread holds."""

    def __init__(self, model: PlainModel, most_seconds: float = 100.0):
        here, there = socket.socketpair()
        here.settimeout(600)
        self.wire, self.model, self.served = Wire(here), model, Wire(there)
        self.raw = here
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._hold, args=(most_seconds,))
        self.thread.start()

    def _hold(self, most_seconds: float) -> None:
        try:
            Conversation(self.served, self._lend, "plain", most_seconds).hold()
        except (OSError, TfxError) as error:
            self.error = error
        finally:
            self.served.close()

    def _lend(self, name: str) -> Any:
        if name != "plain":
            raise UsageError(f"unknown model {name!r}{did_you_mean(name, ['plain'])}")
        return self.model

    def json(self) -> Any:
        message = self.wire.receive()
        assert message is not None
        assert message[0] == JSON, message
        return json.loads(message[1])

    def rest(self) -> tuple[bytes, Any]:
        """All samples up to the next JSON message, and that."""
        samples = b""
        while (message := self.wire.receive()) is not None:
            if message[0] == JSON:
                return samples, json.loads(message[1])
            samples += message[1]
        return samples, None

    def hang_up(self) -> None:
        self.wire.close()
        self.thread.join(600)
        assert not self.thread.is_alive()


@pytest.fixture
def call() -> Iterator[Callable[..., Caller]]:
    made: list[Caller] = []

    def begin(**options: Any) -> Caller:
        made.append(Caller(PlainModel(), **options))
        return made[-1]

    yield begin
    for caller in made:
        caller.hang_up()
        assert caller.model.closed <= 1


def noise(samples: int, channels: int = 2) -> Audio:
    return 0.1 * np.random.default_rng(samples).standard_normal((samples, channels), np.float32)


def send(caller: Caller, content: bytes, seed: int = 0) -> None:
    """In blocks of any size, which end within samples too."""
    sizes, start = random.Random(seed), 0
    while start < len(content):
        size = sizes.choice((1, 3, 8, 100, 5000))
        caller.wire.send(SAMPLES, content[start : start + size])
        start += size


def separated(tmp_path: Path, signal: Audio, rate: int) -> Audio:
    """What the file path gives: ``[n, stems * channels]``."""
    soundfile.write(tmp_path / "song.wav", signal, rate, subtype="FLOAT")
    PlainModel().separate_file(tmp_path / "song.wav", tmp_path / "stems", force=True)
    files = [tmp_path / "stems" / f"{stem}.wav" for stem in PlainModel().stems]
    return np.concatenate(
        [soundfile.read(file, dtype="float32", always_2d=True)[0] for file in files], axis=1
    )


@pytest.mark.parametrize(("rate", "channels"), [(8000, 2), (44_100, 2), (11_025, 1)])
def test_stems_are_those_of_a_file(
    call: Callable[..., Caller], tmp_path: Path, rate: int, channels: int
) -> None:
    caller, signal = call(), noise(2 * rate, channels)
    caller.wire.send_json({"sample_rate": rate, "channels": channels, "model": "plain"})
    assert caller.json() == {
        "type": "ready", "model": "plain", "stems": ["vocals", "other"], "channels": channels,
        "sample_rate": rate, "format": "f32",
    }  # fmt: skip
    threading.Thread(target=lambda: (send(caller, signal.tobytes()), end(caller))).start()
    samples, done = caller.rest()
    assert done == {"type": "done", "samples": 2 * rate}
    found = np.frombuffer(samples, "<f4").reshape(2 * rate, -1)
    np.testing.assert_array_equal(found, separated(tmp_path, signal, rate))


def end(caller: Caller) -> None:
    caller.wire.send_json({"type": "end"})


def test_integers_go_in_and_come_out(call: Callable[..., Caller], tmp_path: Path) -> None:
    caller = call()
    whole = (noise(3000) * 32768).astype("<i2")
    caller.wire.send_json({**HELLO, "format": "s16", "stems": ["other"]})
    assert caller.json()["format"] == "s16"
    send(caller, whole.tobytes())
    end(caller)
    samples, _ = caller.rest()
    right = separated(tmp_path, whole.astype(np.float32) / 32768, 8000)[:, 2:]
    found = np.frombuffer(samples, "<i2").reshape(-1, 2)
    np.testing.assert_array_equal(found, np.clip(np.rint(right.astype(float) * 32768), -32768, 32767))


def test_one_signal_follows_another_and_a_reset_drops_what_was_not_finished(
    call: Callable[..., Caller],
) -> None:
    caller, signal = call(), noise(1000)
    caller.wire.send_json(HELLO)
    found = []
    for _ in range(2):
        assert caller.json()["type"] == "ready"
        send(caller, signal.tobytes())
        end(caller)
        samples, done = caller.rest()
        assert done == {"type": "done", "samples": 1000}
        found.append(samples)
    assert caller.json()["type"] == "ready"
    caller.wire.send(SAMPLES, noise(500).tobytes() + b"abc")
    caller.wire.send_json({"type": "reset"})
    _, ready = caller.rest()
    assert ready["type"] == "ready"
    send(caller, signal.tobytes())
    end(caller)
    assert caller.rest() == (found[0], {"type": "done", "samples": 1000})
    assert found[1] == found[0]


@pytest.mark.parametrize(
    ("first", "says"),
    [
        (b"{", "a message is no JSON object"),
        (b"[]", "a message is no JSON object"),
        (b"[" * 100_000, "a message is no JSON object"),
        ({}, "sample_rate of the first message is None: give an integer"),
        ({**HELLO, "sample_rate": 44100.5}, "sample_rate of the first message is 44100.5"),
        ({**HELLO, "sample_rate": True}, "sample_rate of the first message is True"),
        ({**HELLO, "sample_rate": 5}, "sample rate 5 must be from 1000"),
        ({**HELLO, "channels": 99}, "99 channels: give 1 to 8"),
        ({**HELLO, "format": "f64"}, "format of the first message is 'f64': choose f32 or s16"),
        ({**HELLO, "format": ["f32"]}, "choose f32 or s16"),
        ({**HELLO, "stems": []}, "stems of the first message are []: give a list of names"),
        ({**HELLO, "stems": ["drums"]}, "has no stem 'drums': it has vocals, other"),
        ({**HELLO, "model": "plan"}, "unknown model 'plan', did you mean 'plain'?"),
        ({**HELLO, "model": 5}, "model of the first message is 5: give a name"),
        ({**HELLO, "chanels": 2}, "the first message says 'chanels', did you mean 'channels'?"),
    ],
)
def test_a_wrong_beginning_is_answered_by_one_line(
    call: Callable[..., Caller], first: Any, says: str
) -> None:
    caller = call()
    caller.wire.send(JSON, first if isinstance(first, bytes) else json.dumps(first).encode())
    answer = caller.json()
    assert answer["type"] == "error"
    assert says in answer["error"]
    assert "\n" not in answer["error"]
    assert caller.wire.receive() is None


@pytest.mark.parametrize(
    ("kind", "content", "says"),
    [
        (JSON, b'{"type": "stop"}', "a message of type 'stop': send samples, end or reset"),
        (JSON, b"no", "a message is no JSON object"),
        (SAMPLES, np.array([np.nan, 0], "<f4").tobytes(), "the input holds nan at sample 0 of channel 1"),
        (SAMPLES, bytes(8 * 801), "the signal is longer than 0.1 s"),
    ],
)
def test_what_is_said_wrongly_ends_the_stream_with_one_line(
    call: Callable[..., Caller], kind: Any, content: bytes, says: str
) -> None:
    caller = call(most_seconds=0.1)
    caller.wire.send_json(HELLO)
    assert caller.json()["type"] == "ready"
    caller.wire.send(kind, content)
    answer = caller.json()
    assert answer["type"] == "error"
    assert says in answer["error"]
    assert caller.wire.receive() is None


def test_samples_before_all_is_said(call: Callable[..., Caller]) -> None:
    caller = call()
    caller.wire.send(SAMPLES, bytes(8))
    assert "the first message must be JSON" in caller.json()["error"]


def test_a_signal_that_ends_within_a_sample(call: Callable[..., Caller]) -> None:
    caller = call()
    caller.wire.send_json(HELLO)
    assert caller.json()["type"] == "ready"
    caller.wire.send(SAMPLES, bytes(13))
    end(caller)
    assert "ends within a sample: 5 of its 8 bytes came" in caller.json()["error"]


@pytest.mark.parametrize("begun", [False, True])
def test_who_hangs_up_leaves_nothing(call: Callable[..., Caller], begun: bool) -> None:
    caller = call()
    if begun:
        caller.wire.send_json(HELLO)
        assert caller.json()["type"] == "ready"
        caller.wire.send(SAMPLES, noise(4000).tobytes())
    caller.hang_up()
    assert caller.model.closed == int(begun)


@pytest.mark.parametrize(
    "sent", [b"X" + bytes(4), HEAD.pack(b"P", MOST_BYTES + 1), b"P\x10", HEAD.pack(b"P", 100) + bytes(10)]
)
def test_what_is_no_message_ends_it(call: Callable[..., Caller], sent: bytes) -> None:
    caller = call()
    caller.raw.sendall(sent)
    caller.raw.shutdown(socket.SHUT_WR)
    assert caller.json()["type"] == "error"
    assert struct.calcsize("<cI") == HEAD.size == 5
