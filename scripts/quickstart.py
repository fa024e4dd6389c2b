"""Separate a real song with the embedded model; write the stems, a picture and a table."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import soundfile

from tfswa.runtime.audio.reading import model_blocks, open_audio
from tfswa.runtime.machine import peak_memory_mb
from tfswa.runtime.metrics import sdr_db
from tfswa.runtime.model.opening import open_model
from tfswa.runtime.model.spec import ModelSpec
from tfswa.runtime.songs.loading import Song, example_stem_file, load_stem_file
from tfswa.runtime.stream.separator import Separator
from tfswa.runtime.stream.transform import Stft
from tfswa.runtime.table import text_table


def main(out: Path) -> None:
    model = open_model("demo")
    path = example_stem_file()
    if path is None:
        sys.exit("the package stempeg is not installed: pip install --no-deps stempeg")
    song = load_stem_file(path, model.spec)
    out.mkdir(parents=True, exist_ok=True)
    soundfile.write(out / "mixture.wav", song.mixture.T, model.spec.stft.sample_rate, subtype="FLOAT")
    outputs = {stem: out / f"{stem}.wav" for stem in model.spec.stems}
    with Separator(model, backend="ort") as separator:
        separator.separate(song.mixture)  # warm-up: the figures below are not a cold start's
        result = separator.separate_file(out / "mixture.wav", outputs, force=True)
        print(f"{song.name}: {result.audio_seconds:.1f} s, {separator.session.description}")
    estimates = {stem: read(file, model.spec) for stem, file in outputs.items()}
    rows = [
        (stem, sdr_db(song.stems[stem], estimates[stem]), sdr_db(song.stems[stem], song.mixture))
        for stem in model.spec.stems
    ]
    print()
    print(text_table(("stem", "SDR dB", "mixture as estimate, SDR dB"), rows))
    print()
    print(f"speed        {result.x_realtime:.1f} x real time")
    print(f"peak memory  {peak_memory_mb():.0f} MB")
    draw(song, estimates, model.spec, out / "spectrograms.png")
    print(f"\nlisten: {out}/{{mixture,{','.join(model.spec.stems)}}}.wav\nlook:   {out}/spectrograms.png")


def read(path: Path, spec: ModelSpec) -> np.ndarray:
    with open_audio(path) as audio:
        return np.concatenate(list(model_blocks(audio, spec.stft.sample_rate, spec.channels)), axis=1)


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
