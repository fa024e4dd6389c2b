"""Figures of a measuring that may be stopped: kept item by item in the user's cache until all is measured."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

from tfswa.runtime.documents import from_json, parse_json
from tfswa.runtime.files import caches
from tfswa.runtime.machine import user_cache
from tfswa.runtime.parity.certificate import AxisFigures, GraphFigures, QualityFigures, SignalFigures


@dataclass(frozen=True)
class ItemFigures:
    """What was measured of one artifact on one item; see ``Certificate``.

    Attributes:
        graph: of the network alone; on the first song.
        signal: end to end; none where the network gave NaN or Inf.
        quality: against true stems.
        axes: against itself; on the first song.
        non_finite: NaN and Inf, by item.
        audio_seconds: of songs that were separated.
        wall_seconds: that it took.
        reference_rounding_db: of the float32 reference, by stem; on the first song.
    """

    graph: Sequence[GraphFigures] = ()
    signal: Sequence[SignalFigures] = ()
    quality: Sequence[QualityFigures] = ()
    axes: Sequence[AxisFigures] = ()
    non_finite: Mapping[str, int] = field(default_factory=dict)
    audio_seconds: float = 0.0
    wall_seconds: float = 0.0
    reference_rounding_db: Mapping[str, float | None] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read what ``dataclasses.asdict`` gave.

        Raises:
            ValueError, KeyError, TypeError: something else.
        """
        kinds: dict[str, Any] = {
            "graph": GraphFigures,
            "signal": SignalFigures,
            "quality": QualityFigures,
            "axes": AxisFigures,
        }
        rows = {name: [from_json(kind, row) for row in data[name]] for name, kind in kinds.items()}
        return from_json(cls, {**data, **rows})


class Kept:
    """What a stopped measuring of one artifact left, and what this one adds.

    Args:
        identity: all that a figure depends on but for the item; of another one nothing is taken up.
    """

    def __init__(self, identity: Mapping[str, Any]):
        self._identity = json.dumps(identity, sort_keys=True)
        name = hashlib.sha256(self._identity.encode()).hexdigest()[:32]
        self._path = user_cache() / "parity" / f"{name}.json"
        self._items = self._load()

    def find(self, item: str) -> ItemFigures | None:
        """What was measured of an item, if it was."""
        return self._items.get(item)

    def add(self, item: str, figures: ItemFigures) -> None:
        """Keep an item's figures; where the cache cannot be written, for this process alone."""
        self._items[item] = figures
        items = {name: dataclasses.asdict(found) for name, found in self._items.items()}
        content = json.dumps({"identity": self._identity, "items": items})
        with suppress(OSError):
            caches.put(self._path, content.encode())

    def clear(self) -> None:
        """All is measured: forget it, so that measuring again measures."""
        self._items = {}
        with suppress(OSError):
            self._path.unlink(missing_ok=True)

    def _load(self) -> dict[str, ItemFigures]:
        try:
            data = parse_json(caches.recall(self._path) or b"{}")
            if data.get("identity") != self._identity:
                return {}
            return {name: ItemFigures.from_dict(found) for name, found in data["items"].items()}
        except (ValueError, KeyError, TypeError, AttributeError):  # by another tfx
            return {}
