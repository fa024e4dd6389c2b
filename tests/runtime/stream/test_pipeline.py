"""Two threads around a caller: order, bounds, and every way out of them."""

# ruff: noqa: PT012 - what is tested is how a with statement of several lines is left

import signal
import threading
import time
from collections.abc import Iterator

import pytest
from waiting import HANG_SECONDS, until

from tfswa.runtime.stream.pipeline import DEPTH, BackgroundWorker, Prefetch


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    left = [t for t in set(threading.enumerate()) - before if t.name in ("decode", "encode")]
    assert left == []


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """The limit of every wait of any thread: None for one that ends by an event alone."""
    limits: list[float | None] = []
    wait = threading.Condition.wait

    def counted(self: threading.Condition, timeout: float | None = None) -> bool:
        limits.append(timeout)
        return wait(self, timeout)

    monkeypatch.setattr(threading.Condition, "wait", counted)
    return limits


class Broken(Exception):
    pass


def counted(count: int, taken: list[int], fail_at: int | None = None) -> Iterator[int]:
    for number in range(count):
        if number == fail_at:
            raise Broken(f"item {number}")
        taken.append(number)
        yield number


def interrupt_main() -> None:
    """Ctrl-C, as the main thread gets it."""
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def burn(seconds: float) -> None:
    start = time.thread_time()
    while time.thread_time() - start < seconds:
        pass


class TestPrefetch:
    @pytest.mark.parametrize("count", [0, 1, DEPTH, DEPTH + 1, 10_000])
    def test_hands_over_every_item_in_order(self, count: int) -> None:
        with Prefetch(range(count)) as items:
            assert list(items) == list(range(count))

    def test_items_may_be_none_or_false(self) -> None:
        with Prefetch([None, 0, False, None]) as items:
            assert list(items) == [None, 0, False, None]

    @pytest.mark.parametrize("depth", [1, 3])
    def test_is_never_more_than_its_depth_and_one_ahead(self, depth: int) -> None:
        taken: list[int] = []
        ahead = []
        with Prefetch(counted(12, taken), depth) as items:
            for number in items:
                reached = min(12, number + 1 + depth + 1)
                until(lambda reached=reached: len(taken) >= reached)  # as far as the thread can run
                ahead.append(len(taken) - (number + 1))
        assert max(ahead) == depth + 1
        assert taken == list(range(12))

    def test_waits_for_a_slow_producer(self) -> None:
        def slow() -> Iterator[int]:
            for number in range(3):
                time.sleep(0.15)  # longer than a poll
                yield number

        with Prefetch(slow()) as items:
            assert list(items) == [0, 1, 2]

    def test_runs_while_the_caller_works(self) -> None:
        names = []

        def producer() -> Iterator[int]:
            names.append(threading.current_thread().name)
            yield 1

        with Prefetch(producer()) as items:
            assert list(items) == [1]
        assert names == ["decode"]

    @pytest.mark.parametrize("fail_at", [0, 3, 9])
    def test_an_error_reaches_the_caller_after_what_came_before_it(self, fail_at: int) -> None:
        got = []
        with pytest.raises(Broken, match=f"item {fail_at}"), Prefetch(counted(10, [], fail_at)) as items:
            for number in items:
                got.append(number)
        assert got == list(range(fail_at))

    @pytest.mark.parametrize("kind", [Broken, KeyboardInterrupt])
    def test_leaving_early_stops_the_producer_at_once(self, kind: type[BaseException]) -> None:
        taken: list[int] = []
        with pytest.raises(kind), Prefetch(counted(1_000_000, taken)) as items:
            for number in items:
                if number == 5:
                    raise kind
        assert len(taken) <= 5 + DEPTH + 3

    def test_an_interrupt_reaches_a_caller_that_waits(self) -> None:
        release, released = threading.Event(), []

        def producer() -> Iterator[int]:
            released.append(release.wait(HANG_SECONDS))
            yield 1

        timer = threading.Timer(0.1, interrupt_main)
        try:
            with pytest.raises(KeyboardInterrupt), Prefetch(producer()) as items:
                timer.start()
                try:
                    list(items)
                finally:
                    release.set()
        finally:
            timer.join()
        assert released == [True]  # the caller was out before there was an item

    def test_may_be_read_again_after_the_end(self) -> None:
        with Prefetch(range(3)) as items:
            assert [*items, *items] == [0, 1, 2]

    def test_waits_for_events_and_never_polls(self, waits: list[float | None]) -> None:
        # Files of a second each must not wait for a poll each.
        def producer() -> Iterator[int]:
            until(lambda: waits)  # the caller waits by now
            yield 1

        with Prefetch(producer()) as items:
            assert list(items) == [1]
        assert set(waits) == {None}

    def test_measures_the_cpu_time_of_its_thread_alone(self) -> None:
        def producer() -> Iterator[int]:
            burn(0.1)
            yield 1

        with Prefetch(producer()) as items:
            for _ in items:
                burn(0.3)
        assert 0.1 <= items.cpu_seconds < 0.25


class TestBackgroundWorker:
    @pytest.mark.parametrize("count", [0, 1, DEPTH, DEPTH + 1, 10_000])
    def test_does_every_item_in_order_before_it_ends(self, count: int) -> None:
        done: list[int] = []
        with BackgroundWorker(done.append) as worker:
            for number in range(count):
                worker.put(number)
        assert done == list(range(count))

    @pytest.mark.parametrize("depth", [1, 3])
    def test_put_waits_when_the_queue_is_full(self, depth: int) -> None:
        done: list[int] = []
        ahead = []

        full = threading.Event()

        def slow(number: int) -> None:
            full.wait(HANG_SECONDS)
            done.append(number)

        with BackgroundWorker(slow, depth) as worker:
            for number in range(12):
                worker.put(number)
                ahead.append(number + 1 - len(done))
                if number == depth:
                    full.set()
        assert done == list(range(12))
        assert max(ahead) == depth + 1  # those that wait, and the one in work

    def test_work_is_done_in_the_thread(self) -> None:
        names: list[str] = []
        with BackgroundWorker(lambda _: names.append(threading.current_thread().name)) as worker:
            worker.put(0)
        assert names == ["encode"]

    def test_an_error_reaches_the_caller_at_the_next_put(self) -> None:
        def fail(number: int) -> None:
            if number == 2:
                raise Broken(f"item {number}")

        put = 0
        with pytest.raises(Broken, match="item 2"), BackgroundWorker(fail) as worker:
            for put in range(1_000_000):
                worker.put(put)
        assert put <= 2 + DEPTH + 2

    def test_an_error_on_the_last_item_reaches_the_caller_at_the_end(self) -> None:
        def fail(number: int) -> None:
            time.sleep(0.05)
            if number == 2:
                raise Broken("the last")

        with pytest.raises(Broken, match="the last"), BackgroundWorker(fail) as worker:
            for number in range(3):
                worker.put(number)

    def test_nothing_is_done_after_an_error(self) -> None:
        seen = []

        def fail(number: int) -> None:
            seen.append(number)
            raise Broken

        with pytest.raises(Broken), BackgroundWorker(fail) as worker:
            for number in range(100):
                worker.put(number)
        assert seen == [0]

    @pytest.mark.parametrize("kind", [Broken, KeyboardInterrupt])
    def test_leaving_early_drops_what_waits(self, kind: type[BaseException]) -> None:
        done: list[int] = []

        def slow(number: int) -> None:
            until(worker._drop.is_set)
            done.append(number)

        with pytest.raises(kind), BackgroundWorker(slow, 50) as worker:
            for number in range(50):
                worker.put(number)
            raise kind
        assert done in ([], [0])  # the one that was in work, if one was

    def test_the_callers_own_error_is_the_one_that_is_raised(self) -> None:
        def fail(number: int) -> None:
            raise Broken("theirs")

        with pytest.raises(ZeroDivisionError), BackgroundWorker(fail) as worker:
            worker.put(1)
            time.sleep(0.05)
            raise ZeroDivisionError

    def test_an_interrupt_while_the_rest_is_written_stops_the_thread(self) -> None:
        done: list[int] = []

        def slow(number: int) -> None:
            until(worker._drop.is_set)
            done.append(number)

        timer = threading.Timer(0.15, interrupt_main)
        with pytest.raises(KeyboardInterrupt), BackgroundWorker(slow, 100) as worker:
            for number in range(100):
                worker.put(number)
            timer.start()
        assert done in ([], [0])
        # A thread that goes on would write into files that are being removed.
        assert "encode" not in {thread.name for thread in threading.enumerate()}
        timer.join()

    def test_waits_for_events_and_never_polls(self, waits: list[float | None]) -> None:
        with BackgroundWorker(lambda _: until(lambda: waits)) as worker:
            worker.put(1)
        assert set(waits) == {None}

    def test_measures_the_cpu_time_of_its_thread_alone(self) -> None:
        with BackgroundWorker(lambda _: burn(0.1)) as worker:
            worker.put(1)
            burn(0.3)
        assert 0.1 <= worker.cpu_seconds < 0.25


@pytest.mark.parametrize("slow_end", ["decode", "caller", "encode"])
def test_both_together_keep_order_whichever_is_slow(slow_end: str) -> None:
    def pause(place: str) -> None:
        if place == slow_end:
            time.sleep(0.002)

    def produce() -> Iterator[int]:
        for number in range(100):
            pause("decode")
            yield number

    done: list[int] = []

    def write(number: int) -> None:
        pause("encode")
        done.append(number)

    with Prefetch(produce()) as items, BackgroundWorker(write) as worker:
        for number in items:
            pause("caller")
            worker.put(2 * number)
    assert done == [2 * number for number in range(100)]


def test_an_error_at_either_end_stops_the_other() -> None:
    taken: list[int] = []

    def fail(number: int) -> None:
        raise Broken("encoder")

    with (
        pytest.raises(Broken, match="encoder"),
        Prefetch(counted(1_000_000, taken)) as items,
        BackgroundWorker(fail) as worker,
    ):
        for number in items:
            worker.put(number)
    assert len(taken) < 100
    with (
        pytest.raises(Broken, match="item 3"),
        Prefetch(counted(10, [], 3)) as items,
        BackgroundWorker(lambda _: None) as worker,
    ):
        for number in items:
            worker.put(number)
