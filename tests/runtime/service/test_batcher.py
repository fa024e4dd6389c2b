"""One network for many callers: whose turn it is, who pays for an error, and that nobody hears the others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from waiting import until

from tfswa.runtime.errors import TfxError, UsageError
from tfswa.runtime.service.batcher import Batcher, SharedSession
from tfswa.runtime.stream.separator import Separator

Tensors = Mapping[str, NDArray[np.float32]]
LONG = 600.0  # seconds that no test takes


class Doubling:
    """A network that gives twice what it takes, notes every batch, and can be held up."""

    name, artifact = "doubling", ("doubling.bin", "0" * 64)
    description, versions = "doubles in numpy", {"numpy": np.__version__}

    def __init__(self, limit: int | None = None):
        self.batch_limit = limit
        self.batches: list[list[float]] = []
        self.open = threading.Event()
        self.open.set()

    def infer(self, given: Tensors) -> Tensors:
        self.batches.append(given["mixture"][:, 0].tolist())
        assert self.open.wait(LONG)
        if (given["mixture"] < 0).any():
            raise TfxError("below 0")
        return {"stems": 2 * given["mixture"]}

    def close(self) -> None:
        raise AssertionError("it is its owner's to close")


@pytest.fixture
def network() -> Iterator[Doubling]:
    network = Doubling()
    yield network
    network.open.set()


def ask(session: SharedSession, *values: float) -> list[float]:
    found = session.infer({"mixture": np.array([[value] for value in values], np.float32)})
    return [float(value) for value in found["stems"][:, 0]]


def waiting(batcher: Batcher) -> int:
    return sum(len(caller.waiting) for caller in batcher._callers)


class Later:
    """Calls in threads of their own, one after the other into the queue while the network is held up."""

    def __init__(self, batcher: Batcher, network: Doubling, pool: ThreadPoolExecutor):
        self.batcher, self.network, self.pool = batcher, network, pool
        self.found: list[Any] = []
        network.open.clear()
        self.found.append(pool.submit(ask, batcher.session("first"), 0.5))
        until(lambda: bool(network.batches))

    def ask(self, session: SharedSession, *values: float) -> None:
        before = waiting(self.batcher)
        self.found.append(self.pool.submit(ask, session, *values))
        until(lambda: waiting(self.batcher) == before + len(values))

    def results(self) -> list[Any]:
        self.network.open.set()
        return [one.exception() or one.result() for one in self.found]


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as pool:
        yield pool


@pytest.mark.parametrize("batch", [1, 3])
def test_a_song_sounds_as_alone_whoever_else_is_served(batch: int, exported_bundle: Path) -> None:
    songs = [
        0.3 * np.random.default_rng(seed).standard_normal((2, 9_000 + 4_000 * seed), np.float32)
        for seed in range(5)
    ]
    with Separator(exported_bundle, backend="ort") as plain:

        def separate(batcher: Batcher, song: NDArray[np.float32]) -> NDArray[np.float32]:
            with plain.with_batch(2).with_session(batcher.session(f"key {len(song)}")) as mine:
                return mine.separate(song)

        with Batcher(plain.session, batch=batch) as batcher:
            alone = [separate(batcher, song) for song in songs]
            chunks = batcher.items
            with ThreadPoolExecutor(len(songs)) as pool:
                together = list(pool.map(lambda song: separate(batcher, song), songs))
            assert batcher.items == 2 * chunks
        for one, other, song in zip(alone, together, songs, strict=True):
            np.testing.assert_array_equal(other, one)
            if batch == 1:
                np.testing.assert_array_equal(one, plain.separate(song))
            assert np.abs(one).max() > 0.01


def test_batches_have_one_size_and_keep_the_order_of_each_caller(
    network: Doubling, pool: ThreadPoolExecutor
) -> None:
    with Batcher(network, batch=4) as batcher:
        later = Later(batcher, network, pool)
        later.ask(batcher.session("a"), 1, 2, 3)
        later.ask(batcher.session("b"), 4, 5)
        assert later.results() == [[1.0], [2.0, 4.0, 6.0], [8.0, 10.0]]
    assert network.batches == [[0.5, 0, 0, 0], [1, 4, 2, 5], [3, 0, 0, 0]]
    assert (batcher.batches, batcher.items) == (3, 6)


def test_urgent_ones_go_first_and_keys_take_turns(network: Doubling, pool: ThreadPoolExecutor) -> None:
    with Batcher(network) as batcher:
        later = Later(batcher, network, pool)
        for value in (1, 2):  # two songs of one key, two chunks each
            later.ask(batcher.session("busy"), value, value + 0.1)
        later.ask(batcher.session("other"), 3, 3.1)
        later.ask(batcher.session("busy", urgent=True), 9)
        later.results()
    assert [round(batch[0], 1) for batch in network.batches] == [0.5, 9, 3, 1, 3.1, 2, 1.1, 2.1]


def test_nobody_waits_for_others_where_all_have_come(network: Doubling, pool: ThreadPoolExecutor) -> None:
    with Batcher(network, batch=8, wait_seconds=LONG) as batcher:
        one, two = batcher.session("one"), batcher.session("two")
        assert [call.result(LONG / 10) for call in (pool.submit(ask, one, 1), pool.submit(ask, two, 2))] == [
            [2.0],
            [4.0],
        ]
        two.close()
        assert ask(one, 3) == [6.0]  # the only one there is


def test_a_chunk_waits_so_long_for_one_who_does_not_come(network: Doubling) -> None:
    with Batcher(network, batch=8, wait_seconds=0.2) as batcher:
        session, _idle = batcher.session("one"), batcher.session("two")
        began = time.monotonic()
        assert ask(session, 1) == [2.0]
        assert time.monotonic() - began >= 0.2


def test_an_error_is_of_the_chunk_that_makes_it(network: Doubling, pool: ThreadPoolExecutor) -> None:
    with Batcher(network, batch=3) as batcher:
        later = Later(batcher, network, pool)
        later.ask(batcher.session("a"), 1)
        later.ask(batcher.session("b"), -1)
        later.ask(batcher.session("c"), 3)
        good, *results = later.results()
        assert good == [1.0]
        assert (results[0], str(results[1]), results[2]) == ([2.0], "below 0", [6.0])
        assert ask(batcher.session("b"), 4) == [8.0]  # and the next one is nobody's loss
    assert network.batches[1:5] == [[1, -1, 3], [1, 0, 0], [-1, 0, 0], [3, 0, 0]]


def test_closing_finishes_what_waits_and_takes_no_more(network: Doubling, pool: ThreadPoolExecutor) -> None:
    batcher = Batcher(network, batch=2, wait_seconds=LONG)
    later = Later(batcher, network, pool)
    session = batcher.session("a")
    later.ask(session, 1, 2, 3)
    closing = pool.submit(batcher.close)
    assert later.results() == [[1.0], [2.0, 4.0, 6.0]]
    closing.result(LONG / 10)
    batcher.close()
    with pytest.raises(TfxError, match="session was closed, and its chunks are not separated"):
        ask(session, 4)


def test_a_caller_that_leaves_leaves_nobody_waiting(network: Doubling, pool: ThreadPoolExecutor) -> None:
    with Batcher(network) as batcher:
        later = Later(batcher, network, pool)
        leaving = batcher.session("a")
        later.ask(leaving, 1, 2)
        later.ask(batcher.session("b"), 3)
        leaving.close()
        leaving.close()
        first, left, other = later.results()
        assert (first, other) == ([1.0], [6.0])
        assert "session was closed" in str(left)
        with pytest.raises(TfxError, match="session was closed"):
            ask(leaving, 4)
    assert batcher._served.keys() <= {"first", "b"}


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Batcher(Doubling(2), batch=3), "doubling.bin takes batches of 2, not of 3: lower the batch"),
        (lambda: Batcher(Doubling(), batch=0), "batch"),
        (lambda: Batcher(Doubling(), wait_seconds=-1.0), "a wait of -1.0 seconds"),
        (lambda: Batcher(Doubling(), wait_seconds=float("nan")), "a wait of nan seconds"),
    ],
)
def test_what_cannot_be_is_refused(make: Callable[[], Batcher], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        make()
