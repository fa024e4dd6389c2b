"""One artifact beside the reference: item after item, at every level of a certificate."""

from __future__ import annotations

import datetime
import json
import time
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.backends import BackendOptions, Session, certified_device
from tfswa.runtime.errors import NonFiniteError
from tfswa.runtime.machine import cores, cpu_name
from tfswa.runtime.model.opening import Model
from tfswa.runtime.model.spec import NEXT, STATE
from tfswa.runtime.parity.candidates import Candidate
from tfswa.runtime.parity.certificate import AxisFigures, Certificate, GraphFigures
from tfswa.runtime.parity.corpus import Kind, loudest_tensors
from tfswa.runtime.parity.evidence import versions_of
from tfswa.runtime.parity.figures import Quality, graph_figures, signal_figures, worst_snr_db
from tfswa.runtime.parity.kept import ItemFigures, Kept
from tfswa.runtime.parity.reference import Reference, load_reference, usual_reference
from tfswa.runtime.songs.loading import Song
from tfswa.runtime.stream.codec import Tensors
from tfswa.runtime.stream.separator import Separator

Audio = NDArray[np.float32]

BATCHES = (2, 4)
AXIS_CHUNKS = 3  # of the song that axes are measured on


@dataclass(frozen=True)
class Turn:
    """An item whose turn it is, and what is measured on it beside the signal."""

    name: str
    kind: Kind
    song: Song
    graph: bool
    axes: bool

    @property
    def key(self) -> str:
        """What its figures depend on."""
        return json.dumps([self.name, self.kind, self.song.sha256, self.graph, self.axes])


@dataclass(frozen=True)
class Right:
    """What the reference made of a song."""

    stems: Audio  # [S, C, N], rounded as an artifact's output is: what is identical differs by nothing
    quality: Quality
    figures: dict[str, dict[str, Any]]


class Referee:
    """The reference, asked once for each song; None names the usual one."""

    def __init__(self, model: Model, name: str | None):
        usual = usual_reference(model)
        name = name or usual
        self.name = f"reference {name}"
        self.reference: Reference = load_reference(name)(model)
        self._full: Reference | None = load_reference(usual)(model) if self.reference.exact else None
        self.rounding_db: dict[str, float | None] = {}
        self._model = model
        self._chunk: tuple[Tensors, Tensors] | None = None

    def separate(self, song: Song, real: bool) -> Right:
        """What the reference makes of a song."""
        exact = self.reference.separate(song.mixture)
        if real and self._full is not None and not self.rounding_db:
            rounded = self._full.separate(song.mixture)
            self.rounding_db = {
                stem: worst_snr_db(exact[index : index + 1], rounded[index : index + 1])
                for index, stem in enumerate(self._model.spec.stems)
            }
        stems = exact.astype(np.float32)
        quality = Quality(song, self._model.spec)
        return Right(stems, quality, quality.measure(stems))

    def graph(self, song: Song) -> tuple[Tensors, Tensors]:
        """What the network takes of the song's loudest chunk, and what it makes of that."""
        if self._chunk is None:
            _, given = loudest_tensors(song.mixture, self._model.spec)
            found = self.reference.network_output(given)
            if state := {STATE + name: found[NEXT + name] for name in self._model.spec.state}:
                # Once more, with what it has heard: zeros would not tell one state from another.
                given = {**given, **{name: value.astype(np.float32) for name, value in state.items()}}
                found = self.reference.network_output(given)
            self._chunk = given, {name: value.astype(np.float32) for name, value in found.items()}
        return self._chunk


class Measuring:
    """One artifact in the real separator, and what was found of it."""

    def __init__(self, model: Model, candidate: Candidate):
        self.candidate, self._model = candidate, model
        plain = Separator(model, backend=candidate.backend, options=candidate.options, batch=candidate.batch)
        self._session = _Counting(plain.session)
        self._separator = plain.with_session(self._session)
        self._found: list[ItemFigures] = []
        self._kept: Kept | None = None

    def close(self) -> None:
        """Release the artifact."""
        self._separator.close()

    def open_kept(self, referee: Referee, *, resume: bool) -> None:
        """Look for what a measuring like this one left when it was stopped."""
        if resume:
            identity = {**self._bound_to(referee), "versions": dict(versions_of(self._session))}
            self._kept = Kept(identity)

    def take_up(self, turn: Turn) -> bool:
        """Whether a turn was measured already, by one that was stopped."""
        found = self._kept.find(turn.key) if self._kept is not None else None
        if found is not None:
            self._found.append(found)
        return found is not None

    def measure(self, turn: Turn, referee: Referee, right: Right) -> Audio | None:
        """All that is to be measured on a part; return what it gave, None where that holds NaN or Inf."""
        real = turn.kind == "real"
        graph, non_finite = self._graph(referee, turn.song) if turn.graph else ([], {})
        self._session.non_finite = 0
        start = time.perf_counter()
        try:
            found = self._separator.separate(turn.song.mixture)
        except NonFiniteError:
            found = None
        wall = time.perf_counter() - start
        # None though all that the network gave was finite: it was the host's inverse.
        non_finite[turn.name] = max(int(found is None), self._session.non_finite)
        figures = ItemFigures(graph=graph, non_finite=non_finite, reference_rounding_db=referee.rounding_db)
        if found is not None:
            seconds = turn.song.mixture.shape[-1] / self._model.spec.stft.sample_rate
            quality = right.quality.measure(found) if real else {}
            figures = replace(
                figures,
                signal=signal_figures(turn.name, turn.kind, self._model.spec, right.stems, found),
                quality=right.quality.compare(turn.name, right.figures, quality) if real else [],
                axes=self._axes(turn.song) if turn.axes else [],
                audio_seconds=seconds if real else 0.0,
                wall_seconds=wall if real else 0.0,
            )
        self._found.append(figures)
        if self._kept is not None:
            self._kept.add(turn.key, figures)
        return found

    def _graph(self, referee: Referee, song: Song) -> tuple[list[GraphFigures], dict[str, int]]:
        """The network alone."""
        given, right = referee.graph(song)
        self._session.non_finite = 0
        found = self._session.infer(given)
        name = f"a chunk of {song.name}"
        return graph_figures(name, self._model.spec, right, found), {name: self._session.non_finite}

    def _axes(self, song: Song) -> list[AxisFigures]:
        """The start of a song, run in other ways, against how it was run."""
        spec, separator, options = self._model.spec, self._separator, self.candidate.options
        mixture = song.mixture[:, : AXIS_CHUNKS * spec.chunk_samples]
        rows: list[AxisFigures] = []
        try:
            base = separator.separate(mixture)
            rows.append(_axis("again", 2, base, separator.separate(mixture)))
            limit = self._session.batch_limit or max(BATCHES)
            for batch in filter(limit.__ge__, BATCHES):
                rows.append(_axis("batch", batch, base, separator.with_batch(batch).separate(mixture)))
            for push in (spec.stft.hop - 1, spec.chunk_samples + 1):
                rows.append(_axis("push", push, base, _pushed(separator, mixture, push)))
            if options.device == "cpu" and (options.threads or cores()) > 1:
                alone = BackendOptions(options.precision, options.device, 1)
                with Separator(self._model, backend=self.candidate.backend, options=alone) as single:
                    rows.append(_axis("threads", 1, base, single.separate(mixture)))
        except NonFiniteError:
            rows.append(AxisFigures("again", 2, identical=False, snr_db=None))
        return rows

    def _bound_to(self, referee: Referee) -> dict[str, Any]:
        """What figures depend on, as a certificate says it."""
        assert self._model.bundle is not None
        options = self.candidate.options
        artifact, sha256 = self._session.artifact
        return {
            "artifact": artifact,
            "artifact_sha256": sha256,
            "source": self._model.bundle.digest,
            "backend": self._session.name,
            "precision": options.precision or "fp32",
            "device": certified_device(self._session, options.device),
            "threads": options.threads,
            "batch": self.candidate.batch,
            "cpu": cpu_name(),
            "reference": referee.reference.description,
        }

    def certificate(self, referee: Referee, digest: str, hashes: dict[str, str]) -> Certificate:
        """All of it."""
        found = self._found
        audio, wall = (sum(getattr(one, f"{name}_seconds") for one in found) for name in ("audio", "wall"))
        rows: dict[str, Any] = {
            level: [row for one in found for row in getattr(one, level)]
            for level in ("graph", "signal", "quality", "axes")
        }
        counts = {name: count for one in found for name, count in one.non_finite.items()}
        rounding = next((one.reference_rounding_db for one in found if one.reference_rounding_db), {})
        if self._kept is not None:
            self._kept.clear()
        return Certificate(
            **self._bound_to(referee),
            **rows,
            versions=versions_of(self._session),
            date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            corpus_sha256=digest,
            corpus=dict(hashes),
            x_realtime=audio / wall if wall else None,
            non_finite=counts,
            reference_rounding_db=dict(rounding),
        )


def _axis(axis: str, value: int, base: Audio, found: Audio) -> AxisFigures:
    return AxisFigures(axis, value, bool(np.array_equal(base, found)), worst_snr_db(base, found))


class _Counting:
    """A session that counts what is not finite."""

    def __init__(self, session: Session):
        self._session = session
        self.name, self.artifact, self.description = session.name, session.artifact, session.description
        self.versions, self.batch_limit = session.versions, getattr(session, "batch_limit", None)
        self.transform = getattr(session, "transform", "")
        if hasattr(session, "place"):
            self.place = session.place
        self.non_finite = 0

    def infer(self, given: Tensors) -> Tensors:
        return self._counted(self._session.infer(given))

    def infer_samples(self, given: Tensors) -> Tensors:
        return self._counted(cast(Any, self._session).infer_samples(given))

    def _counted(self, out: Tensors) -> Tensors:
        self.non_finite += sum(int(part.size - np.count_nonzero(np.isfinite(part))) for part in out.values())
        return out

    def close(self) -> None:
        self._session.close()


def _pushed(separator: Separator, mixture: Audio, samples: int) -> Audio:
    engine = separator.stream()
    pieces = [engine.push(mixture[:, at : at + samples]) for at in range(0, mixture.shape[-1], samples)]
    return np.concatenate((*pieces, engine.flush()), axis=-1)
