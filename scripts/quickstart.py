"""Separate a real song with the embedded model; write the stems, a picture and a table."""

from __future__ import annotations

import math
import shlex
import sys
import time
from pathlib import Path

import numpy as np
import soundfile

from tfswa.runtime.machine import peak_memory_mb
from tfswa.runtime.metrics import sdr_db
from tfswa.runtime.model.opening import open_model
from tfswa.runtime.model.spec import ModelSpec
from tfswa.runtime.songs.loading import Song, example_stem_file, load_stem_file
from tfswa.runtime.stream.separator import Separator
from tfswa.runtime.stream.transform import Stft
from tfswa.runtime.table import text_table

RATE = 44_100
PEAK = 0.98  # of full scale
NEXT = """
next (or write {tfx} for tfx):
  source {activate}
  tfx separate {mixture} -o separated
  tfx doctor"""


def main(out: Path) -> None:
    model = open_model("demo")
    path = example_stem_file()
    if path is None:
        sys.exit("the package stempeg is not installed: pip install --no-deps stempeg")
    song = load_stem_file(path, model.spec)
    with Separator(model, backend="ort") as separator:
        separator.separate(song.mixture)  # warm-up: the figures below are not a cold start's
        began = time.perf_counter()
        separated = separator.separate(song.mixture)
        seconds = time.perf_counter() - began
        print(f"{song.name}: {song.mixture.shape[1] / RATE:.1f} s, {separator.session.description}")
    estimates = dict(zip(model.spec.stems, separated, strict=True))
    rows = [
        (stem, sdr_db(song.stems[stem], estimates[stem]), sdr_db(song.stems[stem], song.mixture))
        for stem in model.spec.stems
    ]
    print()
    print(text_table(("stem", "SDR dB", "mixture as estimate, SDR dB"), rows))
    print()
    print(f"speed        {song.mixture.shape[1] / RATE / seconds:.1f} x real time")
    print(f"peak memory  {peak_memory_mb():.0f} MB")
    gain_db = write(out, {"mixture": song.mixture, **estimates})
    draw(song, estimates, model.spec, out / "spectrograms.png")
    files = f"{out}/{{mixture,{','.join(model.spec.stems)}}}.wav"
    print(f"\nlisten: {files} ({gain_db:+.1f} dB, so that none clips)")
    print(f"look:   {out}/spectrograms.png")
    commands = Path(sys.executable).parent
    places = {"activate": commands / "activate", "tfx": commands / "tfx", "mixture": out / "mixture.wav"}
    print(NEXT.format(**{name: shlex.quote(str(path)) for name, path in places.items()}))


def write(out: Path, signals: dict[str, np.ndarray]) -> float:
    """Write 16-bit files with one gain for all, in dB: the sum of loud stems is beyond full scale."""
    out.mkdir(parents=True, exist_ok=True)
    gain = min(1.0, PEAK / max(float(np.abs(signal).max()) for signal in signals.values()))
    for name, signal in signals.items():
        soundfile.write(out / f"{name}.wav", gain * signal.T, RATE, subtype="PCM_16")
    return 20 * math.log10(gain)


def draw(song: Song, estimates: dict[str, np.ndarray], spec: ModelSpec, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    stft = Stft(spec.stft)
    panels = [("mixture", song.mixture)]
    for stem in spec.stems:
        panels += [(f"{stem}, estimate", estimates[stem]), (f"{stem}, truth", song.stems[stem])]
    figure, axes = pyplot.subplots(
        len(panels), 1, figsize=(10, 2 * len(panels)), sharex=True, sharey=True, layout="constrained"
    )
    seconds, top = song.mixture.shape[1] / spec.stft.sample_rate, spec.stft.sample_rate / 2000
    for axis, (title, signal) in zip(axes, panels, strict=True):
        power = np.square(np.abs(stft.forward(signal))).mean(axis=0)  # [T, F + 1]
        level = 10 * np.log10(power.T + 1e-10)
        image = axis.imshow(
            level, origin="lower", aspect="auto", extent=(0, seconds, 0, top), vmin=-60, vmax=20, cmap="magma"
        )
        axis.set(title=title, ylabel="kHz", ylim=(0, 10))
    axes[-1].set_xlabel("seconds")
    figure.colorbar(image, ax=axes, label="dB")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
