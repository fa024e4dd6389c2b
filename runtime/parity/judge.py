"""Verdicts: which figures of a certificate do not reach their gates."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tfswa.runtime.errors import UsageError
from tfswa.runtime.gates import Gates, default_gates
from tfswa.runtime.parity.certificate import Certificate


@dataclass(frozen=True)
class Breach:
    """One figure that does not reach its gate.

    Attributes:
        level: ``graph``, ``signal``, ``quality``, ``axes`` or ``finite``.
        item: of the corpus, or what was varied.
        stem: its name; empty where all are meant.
        figure: which one.
        value: what it is; None where it is not defined.
        limit: what it had to reach.
    """

    level: str
    item: str
    stem: str
    figure: str
    value: float | None
    limit: float

    def __str__(self) -> str:
        """Say it in a few words."""
        value = "undefined" if self.value is None else f"{self.value:.4g}"
        of = f" of {self.stem}" if self.stem else ""
        return f"{self.level}: {self.figure}{of} on {self.item} is {value}, the limit is {self.limit:g}"


def judge(certificate: Certificate, gates: Gates) -> list[Breach]:
    """Every figure that does not reach its gate; a certificate passes if there is none.

    Raises:
        UsageError: there is no gate for the certificate's precision.
    """
    precision = certificate.precision
    of = functools.partial(gates.of, precision)
    of()  # says so even where nothing was measured
    breaches = list(_alike(certificate.graph, "graph", of))
    breaches += _alike([row for row in certificate.signal if row.kind == "real"], "signal", of)
    for row in certificate.signal:
        limit = of(row.stem).error if row.kind == "tiny" else of(row.stem).loud_error
        if row.kind == "real" or limit == math.inf:
            continue
        if row.peak_error is None or row.peak_error > limit:
            breaches.append(Breach("signal", row.item, row.stem, "peak error", row.peak_error, limit))
    for song in certificate.quality:
        gate, drift = of(song.stem), song.drift_db
        low = song.reference.get("sdr_u_db")
        if drift is None or (low is not None and low < gate.ignore_below_sdr_db):
            continue  # None: the truth is silent, or the estimate is; its SNR was judged
        if abs(drift) > gate.drift_db:
            breaches.append(Breach("quality", song.item, song.stem, "drift in dB", drift, gate.drift_db))
    for axis in certificate.axes:
        if not axis.identical and not (axis.snr_db is not None and axis.snr_db >= of().snr_db):
            breaches.append(
                Breach("axes", f"{axis.axis} {axis.value}", "", "SNR in dB", axis.snr_db, of().snr_db)
            )
    for item, count in certificate.non_finite.items():
        if count > gates.non_finite:
            breaches.append(Breach("finite", item, "", "count of NaN and Inf", count, gates.non_finite))
    if not any(row.kind == "real" for row in certificate.signal) and not breaches:
        breaches.append(Breach("signal", "the corpus", "", "count of real songs", 0, 1))
    return breaches


def passes(certificate: Certificate, gates: Gates | None = None) -> bool:
    """Whether a certificate meets its gates, by default those of ``gates.toml``."""
    try:
        return not judge(certificate, gates or default_gates())
    except UsageError:  # there is no gate for its precision
        return False


def _alike(rows: Sequence[Any], level: str, of: Any) -> Iterator[Breach]:
    for row in rows:
        limit = of(row.stem).snr_db
        if row.identical or limit == -math.inf or (row.snr_db is not None and row.snr_db >= limit):
            continue
        error = getattr(row, "peak_error", None)
        if row.snr_db is None and error is not None and error <= of(row.stem).error:
            continue  # the reference is silent: no SNR is defined
        yield Breach(level, row.item, row.stem, "SNR in dB", row.snr_db, limit)
