"""The page of scripts/family_training, from what its runs left."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tfswa.runtime.table import markdown_table

STEM = "vocals"
HEAD = """# Families trained alike, measured

`scripts/family_training --data DIR -o OUT [--minutes N | --steps N]`: one song of DIR held out, the others to
train on. Here they are the CC0 songs of *Everything is Free*.

- **One recipe for all**: data and augmentation of `train/configs/demo.toml`, the squared error of spectra as
  the loss, a cosine as long as the training, chunks of about 3 s. A family may learn better by its own. So
  short a training shows how fast a network learns, not how well it ends.
- Where the time is equal, the number of steps is reckoned from the speed of a short run before. The seconds
  are the steps times the median of one, loader included, validation not, so that what other programs took is
  left out.
- SDR is of the vocals in dB, global (u), of the averaged weights after the last step: on 60 s from the middle
  of the song held out, and on the 6 s song of PyPI's `stempeg`, another artist.
- MSE is the figure of the study that `tfx train study` follows, lower is better: the mean square of the error
  of the vocals' complex spectrogram, over real and imaginary parts, 2048/1024, Hann, not scaled. It is
  computed in this one transform for all."""


def write_page(runs: Path, page: Path) -> None:
    """NAME.json and NAME.md from the runs of a folder, and from what the JSON has of other folders."""
    kept = page.with_suffix(".json")
    results: dict[str, Any] = json.loads(kept.read_text())["runs"] if kept.exists() else {}
    for path in sorted([*runs.glob("*/refused.json"), *runs.glob("*/score.json")]):
        results[path.parent.name] = json.loads(path.read_text())
    page.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps({"runs": results}, indent=1) + "\n")
    lines = [HEAD]
    for budget in dict.fromkeys(found["budget"] for found in results.values()):
        alike = [found for found in results.values() if found["budget"] == budget]
        lines += ["", f"## {budget.replace('min', ' minutes').replace('steps', ' steps')} each", ""]
        lines += table(alike)
    lines += ["", "Measured on:", ""]
    lines += [f"- {name}: {conditions(found)}" for name, found in results.items()]
    page.with_suffix(".md").write_text("\n".join(lines) + "\n")


def table(results: list[dict[str, Any]]) -> list[str]:
    """One row a network, the best on the first song first; then what is no network."""
    done = [found for found in results if "scores" in found]
    names = list(dict.fromkeys(song for found in done for song in found["scores"]))

    def cells(scores: Mapping[str, Mapping[str, float | None]]) -> list[str | None]:
        pairs = (("sdr_db", 2), ("mse", 4))
        return [rounded(scores.get(song, {}).get(key), digits) for key, digits in pairs for song in names]

    def order(found: Mapping[str, Any]) -> float:
        best = found["scores"].get(names[0], {}).get("sdr_db")
        return -np.inf if best is None else float(best)

    rows: list[list[Any]] = []
    for found in sorted(done, key=order, reverse=True):
        about = [found["name"], found["family"], found["parameters"], found["steps"], round(found["seconds"])]
        rows.append([*about, *cells(found["scores"])])
    for what in dict.fromkeys(
        what for found in done for song in found["baselines"].values() for what in song
    ):
        plain = {song: values[what] for song, values in done[0]["baselines"].items()}
        rows.append([what, *[None] * 4, *cells(plain)])
    for found in results:
        if "refused" in found:
            why = f"refused: {found['refused']}"
            rows.append([found["name"], found["family"], None, why, None, *[None] * (2 * len(names))])
    columns = ["network", "family", "parameters", "steps", "seconds"]
    columns += [f"{STEM} SDR, {song}" for song in names] + [f"MSE, {song}" for song in names]
    return markdown_table(columns, rows)


def rounded(value: float | None, digits: int) -> str | None:
    return None if value is None else f"{value:.{digits}f}"


def conditions(found: Mapping[str, Any]) -> str:
    """Where and when."""
    of, batch = found["machine"], f", batch {found['batch']}" if "batch" in found else ""
    return (
        f"{of['cpu']}, {found['threads']} threads, torch {of['torch']}, commit {of['commit']}, {of['date']}, "
        f"seed {found['seed']}{batch}"
    )
