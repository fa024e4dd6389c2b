"""The parity page: every artifact of some models, on every backend and precision that runs on this machine.

What a bundle lacks is exported first. All else is `tfx parity`; this only puts several models on a page.
Backends that compile for minutes, for each batch size anew, are measured on the songs alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench import TFX

from tfswa.runtime.backends import backend_names, compiles
from tfswa.runtime.errors import TfxError
from tfswa.runtime.gates import default_gates
from tfswa.runtime.model.opening import open_model
from tfswa.runtime.parity import judge
from tfswa.runtime.parity.certificate import Certificate
from tfswa.runtime.parity.report import formats
from tfswa.runtime.songs.loading import example_stem_file

EXPORTS = [("onnx", "fp32"), ("onnx", "fp16"), ("torchscript", "fp32"), ("aotinductor", "fp32")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "models", nargs="*", default=["demo"], metavar="MODEL", help="bundles or names (demo)"
    )
    parser.add_argument("--audio", type=Path, help="songs; default: the one that stempeg ships")
    parser.add_argument("-o", "--output", type=Path, metavar="NAME", help="also write NAME.md and NAME.json")
    given = parser.parse_args()
    audio = given.audio or example_stem_file()
    if audio is None:
        sys.exit("stempeg is not installed: pip install stempeg, or name songs with --audio")
    kept: dict[str, Any] = {}
    try:
        for name in given.models:
            export(name)
            kept[name] = measure(name, audio)
    except TfxError as error:
        print(f"parity: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    text = page(kept, audio)
    print(text)
    if given.output:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.with_suffix(".md").write_text(text)
        given.output.with_suffix(".json").write_text(json.dumps(kept) + "\n")
    if any(not certificate["passed"] for found in kept.values() for certificate in found["certificates"]):
        sys.exit(3)


def export(name: str) -> None:
    """Make the artifacts that a bundle lacks; one that is refused stays out, and its reason is printed."""
    for kind, precision in EXPORTS:
        bundle = open_model(name).bundle
        if bundle is not None and bundle.find(kind, precision) is None:
            options = ("--precision", precision) if kind == "onnx" else ()
            subprocess.run([*TFX, "export", name, "--format", kind, *options], stdout=sys.stderr)


def measure(name: str, audio: Path) -> dict[str, Any]:
    """What `tfx parity --json` prints of all backends."""
    found = ask(name, audio)
    slow = [backend for backend in backend_names() if compiles(backend)]
    if slow and not any(entry["backend"] in slow for entry in found["certificates"]):
        more = ask(name, audio, "--quick", *(part for backend in slow for part in ("--backend", backend)))
        found["certificates"] += more["certificates"]
    for certificate in found["certificates"]:
        certificate["x_realtime"] = None  # speed is for `scripts/bench` to tell
        del certificate["polygraphy"]
    del found["evidence"]  # where files lie on this machine, as in the lines for polygraphy
    return found


def ask(name: str, audio: Path, *options: str) -> dict[str, Any]:
    """One `tfx parity --json`, whatever its verdict."""
    command = [*TFX, "parity", name, "--audio", str(audio), "--json", *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode not in (0, 3):
        raise TfxError(f"tfx parity {name} ended with exit code {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def page(kept: dict[str, Any], audio: Path) -> str:
    """A section for each model, as `tfx parity --markdown` writes it."""
    models = " ".join(Path(name).name for name in kept)
    lines = [
        "# Parity",
        "",
        f"By `scripts/parity {models}`, on {audio.name} and the signals made to be difficult; backends",
        "that compile for minutes, for each batch size anew, on the song alone, without axes.",
    ]
    for name, found in kept.items():
        judged = []
        for entry in found["certificates"]:
            own = {key: entry[key] for key in entry if key not in ("passed", "breaches")}
            certificate = Certificate.from_dict(own)
            judged.append((certificate, judge(certificate, default_gates())))
        section = formats.markdown(Path(name).name, judged, default_gates()).splitlines()
        lines += ["", *(f"#{line}" if line.startswith("#") else line for line in section)]
        if found["missing"]:
            lines += ["", "Not measured:", ""]
        lines += [f"- {run}: {why}" for run, why in found["missing"].items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
