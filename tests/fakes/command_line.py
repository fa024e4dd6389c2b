"""What the fixture ``tfx`` gives: a command line that ran in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple


class Done(NamedTuple):
    """What came of a command line."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.err.splitlines()

    @property
    def json(self) -> Any:
        """The one object that it printed; an error is told instead."""
        assert self.code == 0, self.err
        return json.loads(self.out)


Tfx = Callable[..., Done]
