"""The command of NVIDIA's polygraphy that compares what we compare, so that nobody has to take our word.

It knows ONNX Runtime and TensorRT. The float32 graph in ONNX Runtime is its reference: how near that is to
the eager network is ours to show.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from tfswa.runtime.backends.engines import ENGINE
from tfswa.runtime.model.bundle import Bundle
from tfswa.runtime.model.spec import ModelSpec

REFERENCE = "polygraphy-fp32.json"  # where the first command leaves the outputs for the second


def command_line(bundle: Bundle, artifact: str, snr_db: float) -> str | None:
    """A line for a shell that runs an artifact and the float32 graph on the same random planes.

    Args:
        bundle: it holds both.
        artifact: a name in it: an ONNX graph or an engine.
        snr_db: what the SNR of the output must reach.

    Returns:
        None where polygraphy cannot run the artifact, or it is the reference itself.
    """
    full = bundle.find("onnx", "fp32")
    entry = bundle.files.get(artifact)
    if full is None or entry is None or artifact == full or entry.kind not in ("onnx", ENGINE):
        return None
    runner, prefix = ["--onnxrt"], ""
    if entry.kind == ENGINE:
        runner = ["--trt", "--model-type", "engine"]
        if entry.details.get("flavor") == "rtx":
            prefix = "POLYGRAPHY_USE_TENSORRT_RTX=1 "
    shape = _shapes(bundle.spec)
    first = ["polygraphy", "run", str(bundle.file(full)), "--onnxrt", *shape, "--save-outputs", REFERENCE]
    second = ["polygraphy", "run", str(bundle.file(artifact)), *runner, *shape]
    second += ["--load-outputs", REFERENCE, "--compare", "snr", "--snr-threshold", f"{snr_db:g}"]
    return f"{shlex.join(first)} && {prefix}{shlex.join(second)}"


def layers_line(graph: Path, spec: ModelSpec, snr_db: float) -> str:
    """A line that compares every value of an ONNX graph in TensorRT with ONNX Runtime, layer by layer.

    Args:
        graph: the file.
        spec: of the model.
        snr_db: what the SNR of each value must reach; it ends at the first that does not.
    """
    line = ["polygraphy", "run", str(graph), "--onnxrt", "--trt", "--strongly-typed"]
    line += ["--onnx-outputs", "*", "--trt-outputs", "*"]
    return shlex.join(
        [*line, *_shapes(spec), "--compare", "snr", "--snr-threshold", f"{snr_db:g}", "--fail-fast"]
    )


def _shapes(spec: ModelSpec) -> list[str]:
    named = (f"{name}:[{','.join(map(str, (1, *shape)))}]" for name, shape in spec.takes.items())
    return ["--input-shapes", *named]
