"""Gates: what figures must reach. The defaults are in ``gates.toml``; nothing else holds a limit."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tfswa.runtime.documents import parse_toml, read_document
from tfswa.runtime.errors import ConfigError, UsageError, reason

DEFAULTS = Path(__file__).with_name("gates.toml")
STEMS = "stems"


@dataclass(frozen=True)
class Gate:
    """What one stem must reach in one precision; ``gates.toml`` says what each limit means.

    Raises:
        UsageError: a limit that is no number, or a drift or an error below 0.
    """

    snr_db: float = -math.inf
    drift_db: float = math.inf
    error: float = math.inf
    loud_error: float = math.inf
    ignore_below_sdr_db: float = -math.inf

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
                raise UsageError(f"gate {name} is {value!r}: give a number")
        if min(self.drift_db, self.error, self.loud_error) < 0:
            raise UsageError("gates drift_db, error and loud_error are sizes: give 0 or more")


@dataclass(frozen=True)
class Gates:
    """All gates of a file.

    Attributes:
        source: where they are from, for messages.
        precisions: gates of all stems, by precision.
        stems: gates of one stem, by precision and name.
        non_finite: how many NaN and Inf are let through.
    """

    source: str
    precisions: Mapping[str, Gate]
    stems: Mapping[tuple[str, str], Gate] = field(default_factory=dict)
    non_finite: int = 0

    def of(self, precision: str, stem: str = "") -> Gate:
        """The gate of a precision, or of one stem in it.

        Raises:
            UsageError: the file has none for the precision.
        """
        if precision not in self.precisions:
            raise UsageError(
                f"{self.source} has no gate for precision {precision!r}, it has "
                f"{', '.join(self.precisions) or 'none'}: add a table of that name, see --gates"
            )
        return self.stems.get((precision, stem), self.precisions[precision])


@functools.cache
def default_gates() -> Gates:
    """Those of ``gates.toml``."""
    return load_gates(DEFAULTS)


def gate_for(precision: str | None) -> Gate:
    """The default gate of a precision; None is fp32.

    Raises:
        UsageError: there is none.
    """
    return default_gates().of(precision or "fp32")


def load_gates(path: Path) -> Gates:
    """Read gates; what a table leaves out is not judged.

    Raises:
        ConfigError: not TOML, an unknown key, or a limit that is no number.
    """
    try:
        tables = parse_toml(read_document(path))
    except (OSError, ValueError) as error:
        raise ConfigError(f"gates {path} cannot be read: {reason(error)}") from error
    non_finite = tables.pop("non_finite", 0)
    if type(non_finite) is not int or non_finite < 0:
        raise ConfigError(f"gates {path}: non_finite is {non_finite!r}, it must be a whole number, 0 or more")
    precisions: dict[str, Gate] = {}
    stems: dict[tuple[str, str], Gate] = {}
    for precision, table in tables.items():
        if not isinstance(table, dict):
            raise ConfigError(f"gates {path}: {precision!r} is no table of limits: write [fp32] above them")
        own = dict(table)
        for stem, limits in _table(own.pop(STEMS, {}), path, f"{precision}.{STEMS}").items():
            stems[precision, stem] = _gate(
                {**own, **_table(limits, path, f"{precision}.{STEMS}.{stem}")}, path
            )
        precisions[precision] = _gate(own, path)
    return Gates(str(path) if path != DEFAULTS else "gates.toml", precisions, stems, non_finite)


def _table(value: Any, path: Path, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"gates {path}: {name} is {value!r}, it must be a table")
    return value


def _gate(limits: Mapping[str, Any], path: Path) -> Gate:
    known = [limit.name for limit in dataclasses.fields(Gate)]
    unknown = sorted(set(limits) - set(known))
    if unknown:
        raise ConfigError(f"gates {path}: unknown key {unknown[0]!r}, known are {', '.join(known)}, {STEMS}")
    try:
        return Gate(**limits)
    except UsageError as error:
        raise ConfigError(f"gates {path}: {error}") from error
