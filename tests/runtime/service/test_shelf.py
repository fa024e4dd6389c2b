"""Models that are served: loaded once, lent to many, as if each were alone."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tfswa.runtime.errors import BackendUnavailable, UsageError
from tfswa.runtime.model.opening import Model
from tfswa.runtime.service.shelf import Shelf
from tfswa.runtime.stream.arrangement import Arrangement, arrange
from tfswa.runtime.stream.separator import Separator


@pytest.fixture(scope="module")
def arranged(exported_bundle: Path) -> dict[str, Arrangement]:
    one = str(exported_bundle)
    return {
        "one": arrange([one]),
        "two": arrange([one, one], weights=["2,1"]),
        "row": arrange([one], then=[f"vocals={one}"]),
    }


class Loading:
    """Loads in ONNX Runtime, and counts."""

    def __init__(self) -> None:
        self.loaded: list[Separator] = []
        self.closed = 0

    def __call__(self, model: Model) -> Separator:
        separator = Separator(model, backend="ort")
        self.loaded.append(separator)
        close = separator.session.close

        def closing() -> None:
            self.closed += 1
            close()

        separator.session.close = closing  # type: ignore[method-assign]
        return separator


@pytest.fixture
def loading() -> Loading:
    return Loading()


@pytest.fixture(params=[1, 3])
def shelf(
    arranged: dict[str, Arrangement], loading: Loading, request: pytest.FixtureRequest
) -> Iterator[Shelf]:
    with Shelf(arranged, loading, batch=request.param) as shelf:
        yield shelf


def test_many_are_served_by_each_network_as_if_alone(
    shelf: Shelf, loading: Loading, arranged: dict[str, Arrangement]
) -> None:
    song = 0.3 * np.random.default_rng(0).standard_normal((2, 20_000), np.float32)
    warmed = [batcher.items for batcher in shelf.batchers]
    assert min(warmed) > 0

    def separate(name: str) -> np.ndarray:
        with shelf.lend(name, f"key of {name}", urgent=name == "row") as separator:
            assert separator.stems == arranged[name].stems
            return separator.separate(song)

    alone = {name: separate(name) for name in arranged}
    with ThreadPoolExecutor(9) as pool:
        together = list(pool.map(separate, 3 * list(arranged)))
    for name, found in zip(3 * list(arranged), together, strict=True):
        np.testing.assert_array_equal(found, alone[name])
        assert np.abs(found).max() > 0.01
    assert len(loading.loaded) == 5  # one, two and two
    assert loading.closed == 0
    shelf.close()
    assert loading.closed == 5


def test_where_one_cannot_be_loaded_none_stays(arranged: dict[str, Arrangement], loading: Loading) -> None:
    def load(model: Model) -> Separator:
        if len(loading.loaded) == 2:
            raise BackendUnavailable("no more")
        return loading(model)

    with pytest.raises(BackendUnavailable, match="no more"):
        Shelf(arranged, load)
    assert loading.closed == 2


def test_what_is_not_served_is_said(shelf: Shelf) -> None:
    with pytest.raises(
        UsageError, match=r"unknown model 'tow', did you mean 'two'\? served are one, two, row"
    ):
        shelf.lend("tow", "key")
