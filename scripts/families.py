"""Measure every installed network family, untrained: size, speed, memory, drift, engine.

A family is exported, benchmarked and built by the commands that a user types. What one of them refuses is a
line of that family's row and ends nothing else. What is measured already is kept, so a run that was stopped
goes on where it was, and a family that is installed later is added by the same command.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bench import machine
from gpu_check import Check

from tfswa.runtime.benchmark.bench import Plan, bench
from tfswa.runtime.errors import TfxError, reason
from tfswa.runtime.files.atomic import writing
from tfswa.runtime.model.bundle import Bundle
from tfswa.runtime.model.opening import BundleModel
from tfswa.runtime.songs.synthetic import synthetic_song
from tfswa.runtime.stream.arrangement import arrange_one
from tfswa.runtime.stream.transform import Stft
from tfswa.runtime.table import markdown_table
from tfswa.train.backend import load_network, new_bundle
from tfswa.train.families import family_names, get_family
from tfswa.train.families.contract import features_of, takes_statistics
from tfswa.train.strict import parse_overrides

PAGE = Path(__file__).resolve().parents[1] / "docs" / "measured" / "families"
EXPORTS = {
    "onnx fp32": (),
    "onnx fp16": ("--precision", "fp16"),
    "torchscript fp32": ("--format", "torchscript"),
}
ENGINE = "engine fp16"
EAGER = ("torch", "fp32")
BACKENDS = {  # what is timed, and the export that it runs
    EAGER: "",
    ("ort", "fp32"): "onnx fp32",
    ("openvino", "fp32"): "onnx fp32",
    ("openvino", "bf16"): "onnx fp32",
    ("torchscript", "fp32"): "torchscript fp32",
    ("ort", "fp16"): "onnx fp16",
}
HEAD = """# Every network family, measured

`scripts/families`. Networks are **untrained**: weights are random (seed 0), the input statistics are those of
the generated song that the dB are measured on. Nothing here says how well a family separates. Each network
gives the stems of the one whose size its source published; GFLOP are per second of audio.

- Speed is seconds of audio per second in the network alone, one chunk a call, its context included; in
  brackets the ratio to eager torch. The backends of a family took turns in one run, two calls a turn, each in
  a process of its own. Memory is the peak of such a process, the separation of the song included.
- ONNX, TorchScript and fp16 are the SNR of that song's worst stem in dB, separated by ONNX Runtime in fp32,
  by TorchScript, and by ONNX Runtime with the fp16 graph, each against eager torch.
- The engine is TensorRT-RTX's in fp16, built on the CPU for every GPU: seconds and size. It was not run."""


@dataclass(frozen=True)
class Options:
    """How a family is measured.

    Attributes:
        quick: fewer rounds on a shorter song: shows that it works, its speeds are no figures.
        seconds: limit of exports and engine of one family.
        threads: CPU threads of the timed backends; None for all.
    """

    quick: bool = False
    seconds: float = 1800.0
    threads: int | None = None

    @property
    def rounds(self) -> int:
        """Timed calls of each backend."""
        return 2 if self.quick else 9

    @property
    def song_seconds(self) -> float:
        """Length of the song that the dB are measured on."""
        return 3.0 if self.quick else 12.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/families", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="FAMILY", help="default: all that are installed")
    parser.add_argument("--quick", action="store_true", help="2 rounds, 3 s of audio: to see that it works")
    parser.add_argument("--again", action="store_true", help="measure anew what is measured already")
    parser.add_argument(
        "--hyper",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a hyper-parameter of the named families, TOML syntax; repeatable",
    )
    parser.add_argument(
        "--seconds", type=float, default=1800, help="limit of a family's exports and engine (1800)"
    )
    parser.add_argument("--threads", type=int, help="CPU threads of the timed backends (all)")
    parser.add_argument("-o", "--output", type=Path, default=PAGE, metavar="NAME", help=f"({PAGE})")
    given = parser.parse_args()
    known = family_names()
    unknown = sorted(set(given.names) - set(known))
    if unknown:
        parser.error(f"no family is called {', '.join(unknown)}: choose of {', '.join(known)}")
    if given.hyper and not given.names:
        parser.error("--hyper without a family: name those that it is for")
    kept = given.output.with_suffix(".json")
    results: dict[str, Any] = json.loads(kept.read_text())["families"] if kept.exists() else {}
    options = Options(given.quick, given.seconds, given.threads)
    for name in given.names or known:
        label = " ".join((name, *given.hyper))
        done = results.get(label)
        if done and not given.again and (given.quick or not done["quick"]):
            print(f"{label}: measured already, --again measures it anew", file=sys.stderr)
            continue
        try:
            results[label] = measured(name, given.hyper, options)
        except KeyboardInterrupt:
            sys.exit(130)
        write(given.output, results)
    write(given.output, results)
    print("\n".join(table(results)))


def measured(name: str, hyper: Sequence[str], options: Options) -> dict[str, Any]:
    """All figures of a family; whatever fails is in ``refused``, by what it was."""
    began = time.perf_counter()
    found: dict[str, Any] = {"family": name, "hyper": list(hyper), "quick": options.quick}
    found |= {"machine": machine(), "exports": {}, "engine": None, "rows": [], "refused": {}}
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "untrained.tfx"
        try:
            measure(name, hyper, options, bundle, found)
        except Exception as error:  # a third party's family may raise anything: the others go on
            found["refused"]["network"] = reason(error)
        found["refused"] = {
            what: " ".join(why.replace(f"{folder}/", "").split()) for what, why in found["refused"].items()
        }
    found["seconds"] = round(time.perf_counter() - began, 1)
    return found


def measure(name: str, hyper: Sequence[str], options: Options, path: Path, found: dict[str, Any]) -> None:
    """Fill ``found``, step by step, with what an untrained bundle at ``path`` gives."""
    family = get_family(name)
    bundle = untrained(name, hyper, path)
    spec = bundle.spec
    published = None if hyper else family.published
    found |= {
        "stems": list(spec.stems),
        "parameters": spec.parameters,
        "published": published,
        "difference_percent": 100 * (spec.parameters - published) / published if published else None,
        "gflop_per_second": spec.gflop_per_second,
    }
    check = Check(str(path), "cpu", None, time.monotonic() + options.seconds)
    for what, words in EXPORTS.items():
        made = check.tfx(what, "export", str(path), *words)
        if made:
            keys = ("bytes", "snr_db", "seconds", "peak")
            found["exports"][what] = {key: made[key] for key in keys}
    if "onnx fp16" in found["exports"]:
        words = ("build-engine", str(path), "--flavor", "rtx", "--precision", "fp16")
        built = check.tfx(ENGINE, *words)
        if built:
            found["engine"] = {key: built[key] for key in ("version", "target", "bytes", "seconds")}
    found["refused"] |= {row["what"]: row["reason"] for row in check.failures}
    able = [entry for entry, export in BACKENDS.items() if not export or export in found["exports"]]
    try:
        speeds = bench(
            arrange_one(str(path)),
            synthetic_song(spec, options.song_seconds),
            Plan(able, options.rounds, threads=options.threads),
            report=lambda line: print(f"{name}: {line}", file=sys.stderr, flush=True),
        )
    except TfxError as error:  # not even the eager network runs
        found["refused"]["network"] = reason(error)
        return
    found["rows"] = [row.to_dict() for row in speeds.rows]
    found["refused"] |= {failure.item: failure.told for failure in speeds.failures}


def untrained(name: str, hyper: Sequence[str], path: Path) -> Bundle:
    """A bundle with random weights; input statistics, where it has any, are the generated song's."""
    stems, values = get_family(name).published_stems, parse_overrides(hyper)
    bundle = new_bundle(name, path, stems=stems, hyper=values)
    spec, network = bundle.spec, load_network(BundleModel(name, bundle))
    if not takes_statistics(network):
        return bundle
    seconds = max(12.0, spec.chunk_samples / spec.stft.sample_rate)
    mixture = synthetic_song(spec, seconds).mixture[:, : spec.chunk_samples]
    planes = Stft(spec.stft).planes(mixture[None])
    with torch.no_grad():
        features = features_of(network, torch.from_numpy(planes))
        network.set_statistics(features.mean(dim=(0, 1, 2)), features.std(dim=(0, 1, 2)))
    weights = {key: value.numpy() for key, value in network.state_dict().items()}
    return Bundle.create(path, spec, weights, provenance=bundle.provenance, force=True)


COLUMNS = ("family", "parameters", "published", "difference", "GFLOP", "eager", "ONNX Runtime")
COLUMNS += ("OpenVINO", "OpenVINO bf16", "MB eager", "MB ONNX Runtime", "ONNX dB", "TorchScript dB")
COLUMNS += ("fp16 dB", ENGINE)


def table(results: Mapping[str, Any]) -> list[str]:
    """One row a family, in the order of their names."""
    return markdown_table(COLUMNS, [(name, *cells(found)) for name, found in sorted(results.items())])


def cells(found: Mapping[str, Any]) -> list[str | int | None]:
    """A family's figures, or why there are none; see ``COLUMNS``."""
    ort, fp16, script = ("ort", "fp32"), ("ort", "fp16"), ("torchscript", "fp32")
    difference, engine = found.get("difference_percent"), found["engine"]
    built = f"{engine['seconds']:.1f} s, {engine['bytes'] / 1e6:.2f} MB" if engine else None
    why = found["refused"].get(ENGINE) or found["refused"].get("onnx fp16") or found["refused"].get("network")
    return [
        found.get("parameters") or refused(found["refused"].get("network")),
        found.get("published"),
        None if difference is None else f"{difference:+.2f} %",
        found.get("gflop_per_second"),
        *(speed(found, entry) for entry in (EAGER, ort, ("openvino", "fp32"), ("openvino", "bf16"))),
        *(figure(found, entry, "memory_mb", 0) for entry in (EAGER, ort)),
        *(figure(found, entry, "snr_db", 1) for entry in (ort, script, fp16)),
        built or refused(why),
    ]


def speed(found: Mapping[str, Any], entry: tuple[str, str]) -> str | None:
    """Seconds of audio per second, and the ratio to eager."""
    text, row, eager = figure(found, entry, "x_realtime", 2), row_of(found, entry), row_of(found, EAGER)
    if entry == EAGER or not row or not eager or None in (row["median_ms"], eager["median_ms"]):
        return text
    return f"{text} ({row['x_first']:.2f})"  # eager ran, so it is the first row


def figure(found: Mapping[str, Any], entry: tuple[str, str], key: str, digits: int) -> str | None:
    """A figure of a row, or why there is none."""
    row = row_of(found, entry)
    if row is None:
        export = BACKENDS[entry]
        return refused(found["refused"].get(export) or found["refused"].get("network"))
    if row["median_ms"] is None:
        return refused(row["note"])
    if key == "snr_db" and row["identical"]:
        return "identical"
    return (
        f"{row[key]:.{digits}f}" if row[key] is not None else refused(found["refused"].get(":".join(entry)))
    )


def row_of(found: Mapping[str, Any], entry: tuple[str, str]) -> Mapping[str, Any] | None:
    """What ``tfx bench`` has of a backend and precision."""
    rows = (row for row in found["rows"] if (row["backend"], row["precision"]) == entry)
    return next(rows, None)


def refused(why: str | None) -> str | None:
    return f"refused: {why}" if why else None


def write(output: Path, results: Mapping[str, Any]) -> None:
    """Write NAME.json and NAME.md; a stop in between leaves what was there."""
    output.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"families": dict(sorted(results.items()))}, indent=1) + "\n"
    for path, content in ((output.with_suffix(".json"), text), (output.with_suffix(".md"), page(results))):
        with writing(path) as stream:
            stream.write(content.encode())


def page(results: Mapping[str, Any]) -> str:
    """The table, and where and when each row was measured."""
    where: dict[str, list[str]] = {}
    for name, found in sorted(results.items()):
        values = {key: value for key, value in found["machine"].items() if key != "date"}
        line = ", ".join(f"{key} {value}" for key, value in values.items())
        quick = ", --quick: its speeds are no figures" if found["quick"] else ""
        when = f"{found['machine']['date']}, {found['seconds']:.0f} s{quick}"
        where.setdefault(line, []).append(f"- {name}: {when}")
    lines = [HEAD, "", *table(results)]
    for line, names in where.items():
        lines += ["", f"Measured on {line}:", "", *names]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
