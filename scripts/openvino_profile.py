#!/usr/bin/env python3
"""Where OpenVINO spends the time of a network, by kind of operation: scripts/openvino_profile.py MODEL ...

OpenVINO's own counters, the least of several runs for each operation. They cost some time themselves, so that
the sum is a little more than a call takes without them; speeds are compared by `tfx bench`.
"""

from __future__ import annotations

import argparse
import collections
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tfswa.runtime.backends.openvino import process_core
from tfswa.runtime.errors import TfxError
from tfswa.runtime.machine import cores, cpu_name
from tfswa.runtime.model.opening import Model, open_model
from tfswa.runtime.table import markdown_table, text_table

TYPES = {"fp32": "f32", "bf16": "bf16"}
KINDS = {  # what OpenVINO calls an operation that it executes, in words
    "FullyConnected": "linear layers",
    "MatMul": "products of attention",
    "Subgraph": "attention, GELU, sums (fused)",
    "ScaledDotProductAttention": "attention",
    "Convolution": "convolutions",
    "ConvolutionBackpropData": "convolutions",
    "MVN": "normalization",
    "RMS": "normalization",
    "ReduceMean": "normalization",
    "Transpose": "transposes and reorders",
    "Reorder": "transposes and reorders",
    "Concat": "cuts and joins (shifts, rotary)",
    "Split": "cuts and joins (shifts, rotary)",
    "VariadicSplit": "cuts and joins (shifts, rotary)",
    "Slice": "cuts and joins (shifts, rotary)",
    "StridedSlice": "cuts and joins (shifts, rotary)",
}
REST = "all other"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="bundles with model.onnx")
    parser.add_argument("--precision", choices=TYPES, default="bf16", help="what it computes in (bf16)")
    parser.add_argument("--rounds", type=int, default=10, help="runs (10)")
    parser.add_argument("-o", "--output", type=Path, metavar="NAME", help="also write NAME.json, NAME.md")
    given = parser.parse_args()
    head = f"OpenVINO {given.precision}, one chunk, {cores()} cores of {cpu_name()}"
    lines, kept = [f"# Where the time goes: {head}", "", "By `scripts/openvino_profile.py`."], {}
    print(head)
    for name in given.models:
        try:
            rows = profile(open_model(name), TYPES[given.precision], given.rounds)
        except TfxError as error:
            sys.exit(str(error))
        columns = ("kind", "operations", "ms", "share")
        print(f"\n{name}\n{text_table(columns, rows)}")
        lines += ["", f"## {name}", "", *markdown_table(columns, rows)]
        kept[name] = [dict(zip(columns, row, strict=True)) for row in rows]
    if given.output:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.with_suffix(".md").write_text("\n".join(lines) + "\n")
        result = {"machine": head, "models": kept}
        given.output.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")


def profile(model: Model, kind: str, rounds: int) -> list[tuple[str, int, float, str]]:
    """Rows of the table: kind, how many operations, milliseconds, share."""
    core: Any = process_core()
    network = core.read_model(model.file(model.artifact("onnx", "fp32")[0]))
    shape = model.spec.input_shape(1)
    network.reshape({network.inputs[0]: list(shape)})
    settings = {
        "INFERENCE_PRECISION_HINT": kind,
        "INFERENCE_NUM_THREADS": cores(),
        "PERFORMANCE_HINT": "LATENCY",
        "PERF_COUNT": True,
    }
    request = core.compile_model(network, "CPU", settings).create_infer_request()
    planes = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    seconds: dict[tuple[str, str], list[float]] = collections.defaultdict(list)
    for _ in range(rounds + 1):  # the first is warm-up
        request.infer([planes])
        for counter in request.profiling_info:
            if counter.real_time.total_seconds():
                seconds[counter.node_name, counter.node_type].append(counter.real_time.total_seconds())
    total: collections.Counter[str] = collections.Counter()
    count: collections.Counter[str] = collections.Counter()
    for (_, node_type), times in seconds.items():
        word = KINDS.get(node_type, REST)
        total[word] += min(times[1:] or times)
        count[word] += 1
    whole = sum(total.values())
    rows = [
        (word, count[word], round(1e3 * took, 1), f"{100 * took / whole:.0f} %")
        for word, took in total.most_common()
    ]
    return [*rows, ("sum", sum(count.values()), round(1e3 * whole, 1), "100 %")]


if __name__ == "__main__":
    main()
