"""Who asks, and how often: keys, requests a minute, streams at once."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tfswa.runtime.errors import TfxError, UsageError
from tfswa.runtime.service.keys import Keys

ANYBODY = "anybody"  # whose jobs they are where no keys are needed


class WrongKey(UsageError):
    """No key, or one that nobody has."""


class TooMany(TfxError):
    """More than a key may have.

    Attributes:
        seconds: after which it may be tried again.
    """

    def __init__(self, message: str, seconds: float):
        super().__init__(message)
        self.seconds = seconds


class Access:
    """Decides by the key that a request carries.

    Args:
        keys: that are known; None where everybody may ask.
        requests: of a key in a minute.
        streams: of a key at once.
        clock: of the time, in seconds.
    """

    def __init__(
        self, keys: Keys | None, requests: int, streams: int, clock: Callable[[], float] = time.monotonic
    ):
        self._keys, self._requests, self._most = keys, requests, streams
        self._clock = clock
        self._streams: Counter[str] = Counter()
        self._spent: dict[str, tuple[float, float]] = {}  # by key: requests not yet forgotten, as of when

    def reload(self) -> None:
        """Read the keys anew.

        Raises:
            UsageError: the file is none any more; the keys stay as they were.
        """
        if self._keys is not None:
            self._keys = Keys(self._keys.path)

    def name_of(self, authorization: str | None) -> str:
        """Whose request it is.

        Args:
            authorization: ``Bearer KEY``, the header of that name.

        Raises:
            WrongKey: nobody's.
        """
        if self._keys is None:
            return ANYBODY
        scheme, _, key = (authorization or "").partition(" ")
        name = self._keys.name_of(key.strip()) if scheme.lower() == "bearer" else None
        if name is None:
            raise WrongKey("a key is needed here: send the header Authorization: Bearer KEY")
        return name

    def count(self, name: str) -> None:
        """Count a request: so many at once, and as many again in each minute.

        Raises:
            TooMany: it is one too many.
        """
        now, rate = self._clock(), self._requests / 60
        spent, then = self._spent.get(name, (0.0, now))
        spent = max(0.0, spent - (now - then) * rate)
        if spent + 1 > self._requests:
            wait = (spent + 1 - self._requests) / rate
            raise TooMany(f"more than {self._requests} requests in a minute: wait {math.ceil(wait)} s", wait)
        self._spent[name] = spent + 1, now

    @contextmanager
    def stream(self, name: str) -> Iterator[None]:
        """Hold a stream for a block.

        Raises:
            TooMany: the key has as many as it may have.
        """
        if self._streams[name] >= self._most:
            raise TooMany(f"{self._most} streams are open, the most of a key: close one", 1.0)
        self._streams[name] += 1
        try:
            yield
        finally:
            self._streams[name] -= 1
            if not self._streams[name]:
                del self._streams[name]

    @property
    def streams(self) -> int:
        """How many are open, of all."""
        return self._streams.total()
