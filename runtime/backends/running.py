"""A session at work: what a library raises becomes one line, and says what to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.errors import BackendUnavailable, TfxError, reason
from tfswa.runtime.failures import of_library

if TYPE_CHECKING:
    from tfswa.runtime.backends import Session

Tensors = Mapping[str, NDArray[np.float32]]

_MEMORY = ("out of memory", "bad_alloc", "bad allocation", "failed to allocate", "cannot allocate memory")


def infer(session: Session, given: Tensors) -> Tensors:
    """``session.infer``: what the network takes to what it gives, by name.

    Raises:
        BackendUnavailable: the library failed, or memory ran out.
        TfxError: as the session itself says.
    """
    return _said_in_a_line(session, session.infer, given)


def infer_samples(session: Session, given: Tensors) -> Tensors:
    """``session.infer_samples``, of a session that transforms too: samples to stems; raises as ``infer``."""
    return _said_in_a_line(session, cast(Any, session).infer_samples, given)


def _said_in_a_line(session: Session, call: Callable[[Tensors], Tensors], given: Tensors) -> Tensors:
    try:
        return call(given)
    except TfxError:
        raise
    except Exception as error:
        if not of_library(error):
            raise
        raise failed(session.name, len(next(iter(given.values()))), error) from error


def out_of_memory(error: BaseException | None) -> bool:
    """Whether it says, in whatever words, that memory ran out."""
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in _MEMORY)


def failed(backend: str, chunks: int, error: BaseException) -> BackendUnavailable:
    """An error of a backend's library while it loads (0 chunks) or computes."""
    doing = f"with a batch of {chunks}" if chunks else "while it loaded the model"
    if not out_of_memory(error):
        return BackendUnavailable(
            f"backend {backend} failed {doing} ({reason(error)}): use another --backend"
        )
    how = f"--batch {chunks // 2} takes half" if chunks > 1 else "give it more, or choose another --precision"
    return BackendUnavailable(f"backend {backend} ran out of memory {doing}: {how}")
