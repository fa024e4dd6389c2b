"""What people watch while a network trains, and read afterwards.

run/
  log.csv           a row per log interval: loss, its parts, learning rate ...
  validation.csv    a row per validation: the scores
  events.*          the same for TensorBoard, with audio, spectrograms and attention maps
  loss.png          both tables as curves, drawn when the run ends or is interrupted
  wandb/, wandb.id  only where a Weights & Biases project is named
"""

from __future__ import annotations

import csv
import io
import logging
import os
import platform
import time
import wave
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tfswa.runtime.errors import BackendUnavailable, NonFiniteError, reason
from tfswa.runtime.files.atomic import writing
from tfswa.runtime.plots import pictures
from tfswa.runtime.plots.spectrograms import loudest_db, spectrograms
from tfswa.train.config import LossConfig

log = logging.getLogger(__name__)

LOG = "log.csv"
VALIDATION = "validation.csv"
CURVES = "loss.png"
WANDB_ID = "wandb.id"
LOSSES = ("loss", *(field.name for field in fields(LossConfig)))
LISTEN_SECONDS = 30.0  # of what is longer, the middle: a whole song would add 40 MB to the events each time

Audio = NDArray[np.float32]


class Watch:
    """Log files, TensorBoard and, where a project is named, Weights & Biases, of one run.

    As a context manager it closes itself, and tells Weights & Biases whether the run failed.

    Args:
        out: folder of the run; it is there already.
        step: steps done already. 0 begins anew: tables, curves and id of an earlier run are removed. Above
            it, what was logged after ``step`` is dropped, for those steps are done again.
        wandb: project of Weights & Biases; empty for none.
        config: resolved configuration, for Weights & Biases.

    Raises:
        BackendUnavailable: tensorboard or wandb is not installed, or wandb knows no account.
    """

    def __init__(
        self,
        out: Path,
        step: int,
        *,
        wandb: str = "",
        config: Mapping[str, Any] = {},  # read only
    ) -> None:
        self.out = out
        self._board: Any = None
        self._wandb = _start_wandb(wandb, out, config, resume=step > 0) if wandb else None
        if step == 0:
            for name in (CURVES,) if wandb else (CURVES, WANDB_ID):
                (out / name).unlink(missing_ok=True)
        self._board = _Events(out, step)
        self._log, self._validation = _Table(out / LOG, step), _Table(out / VALIDATION, step)

    def scalars(self, step: int, row: Mapping[str, float]) -> None:
        """Log a row of training figures."""
        self._log.add(step, row)
        self._figures(step, row)

    def scores(self, step: int, row: Mapping[str, float]) -> None:
        """Log a row of validation scores, as ``validation/<name>`` outside the table."""
        self._validation.add(step, row)
        self._figures(step, {f"validation/{name}": value for name, value in row.items()})

    def listen(self, step: int, rate: int, audio: Mapping[str, Audio]) -> None:
        """Let people hear and see signals: of each, up to 30 s from its middle.

        Args:
            step: steps done.
            rate: samples per second.
            audio: by name, ``[C, N]``. One gain brings the loudest of all to full scale, so that they
                can be compared.

        Raises:
            NonFiniteError: a signal holds NaN or Inf.
            BackendUnavailable: matplotlib is not installed.
        """
        audio = {name: _middle(signal, rate) for name, signal in audio.items() if signal.size}
        for name, signal in audio.items():
            if not np.isfinite(signal).all():
                raise NonFiniteError(f"audio {name!r} of step {step} holds NaN or Inf: lower optim.lr")
        peak = max((float(np.abs(signal).max()) for signal in audio.values()), default=0.0)
        loudest = loudest_db(audio.values())
        for name, signal in audio.items():
            self._sound(step, f"audio/{name}", rate, signal / peak if peak else signal)
            figure = spectrograms(rate, {name: signal}, loudest_db=loudest)
            self._picture(step, f"spectrogram/{name}", figure)

    def look(self, step: int, maps: Mapping[str, NDArray[Any]]) -> None:
        """Show attention maps ``[L, L]`` by name as one picture.

        Raises:
            BackendUnavailable: matplotlib is not installed.
        """
        if maps:
            self._picture(step, "attention", pictures.attention_grid(maps, title=f"attention, step {step}"))

    def close(self, *, failed: bool = False) -> None:
        """Draw loss.png and let go of everything; calling it twice is harmless.

        Args:
            failed: what Weights & Biases is told of the run.
        """
        board, run = self._board, self._wandb
        self._board = self._wandb = None
        if board is not None:
            board.close()
            self._draw()
        if run is not None:
            run.finish(exit_code=int(failed))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(failed=error is not None)

    def _figures(self, step: int, row: Mapping[str, float]) -> None:
        for name, value in row.items():
            self._board.add(step, name, simple_value=value)
        if self._wandb is not None:
            # A key of our own: wandb's counter only rises, and a resumed run repeats steps.
            self._wandb.log({"step": step, **row})

    def _picture(self, step: int, tag: str, figure: Any) -> None:
        from PIL import Image
        from tensorboard.compat.proto.summary_pb2 import Summary

        pixels = pictures.to_pixels(figure)
        height, width, colors = pixels.shape
        coded = io.BytesIO()
        Image.fromarray(pixels).save(coded, "PNG")
        image = Summary.Image(
            height=height, width=width, colorspace=colors, encoded_image_string=coded.getvalue()
        )
        self._board.add(step, tag, image=image)

    def _sound(self, step: int, tag: str, rate: int, signal: Audio) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        channels, samples = signal.shape
        coded = io.BytesIO()
        with wave.open(coded, "wb") as stream:
            stream.setparams((channels, 2, rate, samples, "NONE", ""))
            stream.writeframes(np.rint(signal.T * 32767).astype("<i2").tobytes())
        sound = Summary.Audio(
            sample_rate=rate,
            num_channels=channels,
            length_frames=samples,
            encoded_audio_string=coded.getvalue(),
            content_type="audio/wav",
        )
        self._board.add(step, tag, audio=sound)

    def _draw(self) -> None:
        """Draw the curves. A run is not lost for want of a picture: what hinders it is logged."""
        train, scores = self._log.columns(), self._validation.columns()
        if not train and not scores:
            return
        try:
            pictures.save_png(pictures.loss_curves(train, scores, losses=LOSSES), self.out / CURVES)
        except (BackendUnavailable, OSError) as error:
            log.warning("no %s: %s", self.out / CURVES, error)


class _Events:
    """A file that TensorBoard reads, each record in it as soon as it is added.

    Its own writer appends from a thread, by the file's name: after the folder was moved or the disk was full,
    the run would end with that thread's error, or go on in a folder that is not its own.

    Args:
        out: folder of the run.
        step: what earlier files hold after it, TensorBoard leaves out.

    Raises:
        BackendUnavailable: tensorboard is not installed.
    """

    def __init__(self, out: Path, step: int) -> None:
        try:
            from tensorboard.compat.proto.event_pb2 import Event, SessionLog
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError as error:
            raise BackendUnavailable("the log needs tensorboard: pip install 'tfswa[train]'") from error
        # TensorBoard reads the files of a folder in the order of their names.
        seconds, rest = divmod(time.time_ns(), 10**9)
        name = f"events.out.tfevents.{seconds:010d}.{rest:09d}.{platform.node()}.{os.getpid()}"
        self._records = RecordWriter((out / name).open("xb"))
        self._write(Event(file_version="brain.Event:2"))
        self._write(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def add(self, step: int, tag: str, **value: Any) -> None:
        """Add one value, given by the name of its field in ``Summary.Value``."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._write(Event(step=step, summary=Summary(value=[Summary.Value(tag=tag, **value)])))

    def close(self) -> None:
        """Let go of the file; calling it twice is harmless."""
        self._records.close()

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())
        self._records.flush()


class _Table:
    """A CSV file with a column ``step``, whole after every row.

    Args:
        path: the file.
        step: the last step whose row is kept; 0 removes the file.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        if step == 0:
            path.unlink(missing_ok=True)
        self._names, rows = self._read()
        if self._names:
            self._rewrite([row for row in rows if row[0].isdecimal() and int(row[0]) <= step])

    def add(self, step: int, row: Mapping[str, float]) -> None:
        """Append a row; names that the file has no column for are added at the right."""
        fresh = [name for name in ("step", *row) if name not in self._names]
        if fresh:
            _, rows = self._read()
            self._names = [*self._names, *fresh]
            self._rewrite([cells + [""] * len(fresh) for cells in rows])
        cells = {**row, "step": step}
        # A link that came to lie there is not followed.
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(handle, "a", newline="") as stream:
            _writer(stream).writerow(cells.get(name, "") for name in self._names)

    def columns(self) -> dict[str, list[float]]:
        """Return all figures by column; an empty cell is NaN."""
        names, rows = self._read()
        return {name: [float(row[i] or "nan") for row in rows] for i, name in enumerate(names) if rows}

    def _read(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows. A last line without its end, and rows of another length, are left out."""
        if not self.path.exists():
            return [], []
        whole, _, _ = self.path.read_bytes().rpartition(b"\n")
        names, *rows = list(csv.reader(io.StringIO(whole.decode(errors="replace"), newline=""))) or [[]]
        return names, [row for row in rows if len(row) == len(names)]

    def _rewrite(self, rows: list[list[str]]) -> None:
        text = io.StringIO(newline="")
        _writer(text).writerows([self._names, *rows])
        with writing(self.path) as stream:
            stream.write(text.getvalue().encode())


def _writer(stream: Any) -> Any:
    return csv.writer(stream, lineterminator="\n")


def _middle(signal: Audio, rate: int) -> Audio:
    kept = min(signal.shape[1], int(LISTEN_SECONDS * rate))
    start = (signal.shape[1] - kept) // 2
    return signal[:, start : start + kept]


def _start_wandb(project: str, out: Path, config: Mapping[str, Any], *, resume: bool) -> Any:
    """Open a run in Weights & Biases: a new one, or the one that ``out`` remembers."""
    # Its service writes logs to the user's cache otherwise; it reads the place from the environment.
    os.environ.setdefault("WANDB_CACHE_DIR", str(out.absolute()))
    try:
        import wandb
    except ImportError as error:
        raise BackendUnavailable(
            f"project {project!r} needs wandb: pip install 'tfswa[wandb]', or leave run.wandb empty"
        ) from error
    path = out / WANDB_ID
    known = path.read_text().strip() if resume and path.exists() else None
    quiet = wandb.Settings(console="off", disable_git=True, save_code=False)
    try:
        run = wandb.init(
            project=project, dir=str(out), id=known, resume="allow", config=dict(config), settings=quiet
        )
    except wandb.errors.Error as error:
        raise BackendUnavailable(
            f"wandb project {project!r} cannot be opened ({reason(error)}): log in, or set WANDB_MODE=offline"
        ) from error
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    with writing(path) as stream:
        stream.write(f"{run.id}\n".encode())
    return run
