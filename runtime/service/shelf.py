"""The models that are served: each network is loaded once, and shared by all who are served."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Self

import numpy as np

from tfswa.runtime.errors import UsageError, did_you_mean
from tfswa.runtime.model.opening import Model
from tfswa.runtime.service.batcher import WAIT_SECONDS, Batcher
from tfswa.runtime.stream.arrangement import Arrangement, Load
from tfswa.runtime.stream.separating import Separating
from tfswa.runtime.stream.separator import Separator


class Shelf:
    """Loads models and lends them; a context manager.

    Args:
        models: what is served, by the name that requests say.
        load: loads one network; ``batch`` of what it gives is how many chunks a job hands over at once.
        batch: chunks that a network gets at once, see ``Batcher``.
        wait_seconds: see ``Batcher``.

    Attributes:
        models: as given.
        batchers: one for each network.

    Raises:
        TfxError: as ``load``; what was loaded before is released.
    """

    def __init__(
        self,
        models: Mapping[str, Arrangement],
        load: Load,
        *,
        batch: int = 1,
        wait_seconds: float = WAIT_SECONDS,
    ):
        self.models = dict(models)
        self._shared: dict[int, tuple[Separator, Batcher]] = {}
        with ExitStack() as stack:
            for arranged in self.models.values():
                for model in arranged.models:
                    plain = stack.enter_context(load(model))
                    batcher = stack.enter_context(
                        Batcher(plain.session, batch=batch, wait_seconds=wait_seconds)
                    )
                    self._shared[id(model)] = plain, stack.enter_context(batcher)
                self._warm(arranged)
            self._opened = stack.pop_all()

    @property
    def batchers(self) -> list[Batcher]:
        """One for each network."""
        return [batcher for _, batcher in self._shared.values()]

    def check(self, name: str) -> Arrangement:
        """What is served under a name.

        Raises:
            UsageError: nothing is.
        """
        if name not in self.models:
            close = did_you_mean(name, self.models) or ":"
            raise UsageError(f"unknown model {name!r}{close} served are {', '.join(self.models)}")
        return self.models[name]

    def lend(self, name: str, key: str, *, urgent: bool = False) -> Separating:
        """A model for one job or stream, which closes it and leaves the networks to the others.

        Args:
            name: under which it is served.
            key: whose it is, see ``Batcher.session``.
            urgent: before all that are not.

        Raises:
            UsageError: nothing is served under that name.
        """
        return self._lent(self.check(name), key, urgent=urgent)

    def close(self) -> None:
        """Release the networks, once what waits for them is done."""
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _lent(self, arranged: Arrangement, key: str, *, urgent: bool) -> Separating:
        def share(model: Model) -> Separator:
            plain, batcher = self._shared[id(model)]
            return plain.with_session(batcher.session(key, urgent=urgent))

        return arranged.load(share)

    def _warm(self, arranged: Arrangement) -> None:
        """Run each network once, so that the first who is served does not wait for what is done but once."""
        with self._lent(arranged, "warming up", urgent=False) as separator:
            separator.separate(np.zeros((arranged.channels, 1), np.float32))
