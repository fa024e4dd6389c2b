"""The cheapest plan within a budget of decibels.

Each group of layers is first computed in 8 bits alone, which tells what that costs in dB. Groups are then
taken in the order of time gained for noise added, and the longest run of them that keeps within the budget
is found by trying: errors of layers add up, but not exactly, so no plan is believed before it was measured.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tfswa.calibration.cost import Costs
from tfswa.calibration.loss import HeldOut, Loss
from tfswa.calibration.simulate import FULL, HALF, INT8, Simulator
from tfswa.runtime.documents import parse_json
from tfswa.runtime.errors import NonFiniteError
from tfswa.runtime.files import caches
from tfswa.runtime.model.bundle import writable

Step = Callable[[str, int, int], None]  # what is under way, steps done, steps in all

_NOTHING_LEFT = Loss({"": -math.inf}, {"": math.inf}, known=True)
MARGIN = 0.05  # of a group's time: what is gained must be more, or it is what measuring scatters by
EASY = 0.25  # of the budget: where all of half precision costs less, no group is asked whether it can bear it


@dataclass(frozen=True)
class Point:
    """A plan that was measured.

    Attributes:
        int8: groups in 8 bits.
        fp32: groups in float32.
        cost: of a chunk, summed over its groups.
        loss: what it lost.
        time: of the whole network by this plan, that of the fastest without INT8 being 1; None where it was
            not run.
    """

    int8: tuple[str, ...]
    fp32: tuple[str, ...]
    cost: float
    loss: Loss
    time: float | None = None


@dataclass(frozen=True)
class Found:
    """The outcome of a search.

    Attributes:
        best: the plan.
        points: all that were measured whole, the best among them.
        alone: loss of each group in 8 bits alone, and of those that were asked, in half precision alone.
    """

    best: Point
    points: list[Point]
    alone: dict[str, dict[str, Loss]]


class Search:
    """One search; what it measured can be kept in a file and taken up again.

    Args:
        simulator: the network.
        held_out: what it is measured on.
        costs: of each group in each precision.
        budget_db: what the worst stem may drift.
        cache: file for measured losses; None to keep nothing.
        key: of all that a measured loss depends on: a cache of another is not used.
        mixes: a plan may have float32 beside half precision. Where not, as in OpenVINO, all that is not in
            8 bits is in half precision if a network without INT8 is within the budget in that, and costs
            less in it than in float32; else in float32.
        step: told of progress.
    """

    def __init__(
        self,
        simulator: Simulator,
        held_out: HeldOut,
        costs: Costs,
        budget_db: float,
        *,
        cache: Path | None = None,
        key: str = "",
        mixes: bool = True,
        step: Step = lambda what, done, steps: None,
    ):
        self._simulator, self._held_out, self._costs = simulator, held_out, costs
        self._budget_db, self._cache, self._key, self._step = budget_db, cache, key, step
        self._mixes, self._rest = mixes, HALF  # what is not taken elsewhere
        self._known = _load(cache, key)
        self._points: list[Point] = []

    def run(self) -> Found:
        """Measure groups, then plans; see the module."""
        groups = list(self._costs)
        alone: dict[str, dict[str, Loss]] = {name: {} for name in groups}
        for done, name in enumerate(groups):
            self._step("each group in int8 alone", done, len(groups))
            alone[name][INT8] = self._measure({name: INT8})
        self._step("each group in int8 alone", len(groups), len(groups))
        halves = self._point(int8=(), fp32=())
        moves: list[tuple[str, str]] = []
        bearable = EASY * self._budget_db if self._mixes else self._budget_db
        if halves.loss.worst_drift_db > bearable or not (
            self._mixes or self._whole(HALF) < self._whole(FULL)
        ):
            self._rest = FULL
        if self._rest == FULL and self._mixes:
            for done, name in enumerate(groups):
                self._step("each group in half precision alone", done, len(groups))
                alone[name][HALF] = self._measure({name: HALF})
                moves.append((name, HALF))
            self._step("each group in half precision alone", len(groups), len(groups))
        moves += [(name, INT8) for name in groups]
        moves = [
            (name, kind) for name, kind in moves if self._gain(name, kind) > MARGIN * self._costs[name][kind]
        ]
        moves.sort(key=lambda move: self._gain(*move) / _noise(alone[move[0]][move[1]]), reverse=True)
        best = self._longest(moves)
        for share in (0.25, 0.5, 0.75):  # so that what more of it would cost can be seen
            self._taken(moves[: round(share * len(moves))])
        return Found(best, self._points, alone)

    def _longest(self, moves: list[tuple[str, str]]) -> Point:
        """The longest run of moves within the budget; plans in between are measured by halving."""
        low, high = 0, len(moves)  # the run of ``low`` is within it
        best = self._taken(moves[:0])
        trials = math.ceil(math.log2(high + 1)) + 1 if high else 0
        place = high  # all of them first: often that is within
        for trial in range(trials):
            self._step("plans", trial, trials)
            point = self._taken(moves[:place])
            if point.loss.worst_drift_db <= self._budget_db:
                low, best = place, point
            else:
                high = place - 1
            if low >= high:
                break
            place = (low + high + 1) // 2
        self._step("plans", trials, trials)
        return best

    def _taken(self, moves: list[tuple[str, str]]) -> Point:
        kinds = dict.fromkeys(self._costs, self._rest)
        for name, kind in moves:
            if kinds[name] != INT8:
                kinds[name] = kind
        return self._point(
            int8=tuple(name for name, kind in kinds.items() if kind == INT8),
            fp32=tuple(name for name, kind in kinds.items() if kind == FULL),
        )

    def _point(self, int8: tuple[str, ...], fp32: tuple[str, ...]) -> Point:
        plan = {name: INT8 if name in int8 else FULL if name in fp32 else HALF for name in self._costs}
        cost = sum(self._costs[name][kind] for name, kind in plan.items())
        point = Point(int8, fp32, cost, self._measure(plan))
        if point not in self._points:
            self._points.append(point)
        return point

    def _whole(self, kind: str) -> float:
        return sum(costs[kind] for costs in self._costs.values())

    def _gain(self, name: str, kind: str) -> float:
        """Time that a move takes off the cheapest that there is without it."""
        costs = self._costs[name]
        if self._rest == FULL and self._mixes and kind == INT8:
            return min(costs[FULL], costs[HALF]) - costs[INT8]
        return costs[self._rest] - costs[kind]

    def _measure(self, plan: Mapping[str, str]) -> Loss:
        name = json.dumps(sorted(plan.items()))
        if name not in self._known:
            try:
                self._known[name] = self._held_out.measure(lambda planes: self._simulator.infer(planes, plan))
            except NonFiniteError:  # a layer that overflows in half precision: no plan will have it
                self._known[name] = _NOTHING_LEFT
            if self._cache is not None:
                _save(self._cache, self._key, self._known)
        return self._known[name]


def _noise(loss: Loss) -> float:
    """Energy of the error, beside that of the worst stem; never 0."""
    return max(10 ** (-loss.worst_snr_db / 10), 1e-15)


def _load(path: Path | None, key: str) -> dict[str, Loss]:
    """Losses that an earlier search measured; none where the file is of something else, or damaged."""
    found = None if path is None else caches.recall(path)
    try:
        kept = parse_json(found or b"{}")
        return {name: _loss(loss) for name, loss in kept["losses"].items()} if kept["key"] == key else {}
    except (ValueError, KeyError, TypeError, AttributeError):  # by another tfx
        return {}


def _loss(kept: Mapping[str, Any]) -> Loss:
    """Read what ``asdict`` gave; infinity is a figure here.

    Raises:
        ValueError, TypeError, AttributeError: something else.
    """
    loss = Loss(**kept)
    figures = [loss.snr_db, loss.drift_db, loss.expected_db, loss.scatter_db]
    if not loss.snr_db or not all(isinstance(one, int | float) for kind in figures for one in kind.values()):
        raise ValueError("figures are missing, or no numbers")
    return loss


def _save(path: Path, key: str, known: Mapping[str, Loss]) -> None:
    with writable(path):
        text = json.dumps({"key": key, "losses": {name: asdict(x) for name, x in known.items()}})
        caches.put(path, text.encode())
