"""How a run of many items ends where some of them failed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from tfswa.runtime.errors import TfxError

if TYPE_CHECKING:
    from tfswa.runtime.failures import Failure


def raise_for(failures: Sequence[Failure], total: int, items: str) -> None:
    """Raise the error that stands for all failures, once the other items are done; nothing where none failed.

    A fault of our own comes first: its traceback is to be seen. Of a single item it is the item's own error.

    Args:
        failures: of the items.
        total: items that were asked for.
        items: what they are, in the plural.
    """
    from tfswa.runtime.failures import is_fault

    if not failures:
        return
    count = f"{len(failures)} of {total} {items} failed"
    for failure in failures:
        if is_fault(failure.error):
            click.echo(f"tfx: {count}", err=True)
            raise failure.error
    first = failures[0]
    kind = type(first.error) if isinstance(first.error, TfxError) else TfxError
    raise kind(count if total > 1 else first.told)
