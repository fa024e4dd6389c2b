"""What bias correction gains in INT8: loss of all layers in 8 bits, with biases as they are and corrected.

A corrected bias takes away what a layer's error has in common over all places of a channel, and nothing else.
Each layer is computed in float32 and in 8 bits on the same input, on chunks to calibrate on of a corpus that
`tfx calibrate --keep` wrote; what that is worth is measured on the held-out ones.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from tfswa.calibration.corpus import Corpus, open_corpus
from tfswa.calibration.loss import HeldOut
from tfswa.export.quantize import LEVELS, layers, load_ranges, quantize_graph, rounded_weight
from tfswa.export.session import cpu_session
from tfswa.runtime.errors import TfxError
from tfswa.runtime.model.opening import INPUT, Model, open_model
from tfswa.runtime.stream.transform import Stft, pack
from tfswa.runtime.table import text_table

CHUNKS = 16  # to take errors from, evenly from the corpus


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a bundle that was calibrated")
    parser.add_argument("--corpus", type=Path, required=True, help="what tfx calibrate --keep wrote")
    given = parser.parse_args()
    try:
        model = open_model(given.model)
        print(measure(model, open_corpus(given.corpus, model.spec)))
    except TfxError as error:
        sys.exit(f"bias_correction: {error}")


def measure(model: Model, corpus: Corpus) -> str:
    graph = onnx.load(model.file(model.artifact("onnx", "fp32")[0]))
    ranges, stems = load_ranges(model), model.spec.stems
    mean, shares = errors(model, graph, ranges, corpus)
    plain = quantize_graph(graph, ranges, list(ranges))
    held_out = HeldOut(corpus.held_out, model.spec, network(graph))
    rows: list[list[str | float | None]] = []
    for label, made in (("as they are", plain), ("corrected", corrected(plain, mean))):
        loss = held_out.measure(network(made))
        rows.append([label, *loss.snr_db.values(), *loss.drift_db.values()])
    columns = ["biases", *(f"{stem} SNR dB" for stem in stems), *(f"{stem} drift dB" for stem in stems)]
    return (
        f"{model.name}: all layers in int8, on {corpus.held_out_count} held-out chunks\n"
        f"{text_table(columns, rows, digits=3)}\n"
        f"share of a layer's error that is the same in all places of a channel: median "
        f"{100 * float(np.median(shares)):.1f} %, largest {100 * max(shares):.1f} %"
    )


def network(graph: onnx.ModelProto) -> Callable[[Any], Any]:
    session = cpu_session(graph)
    return lambda planes: session.run(None, {INPUT: planes})[0]


def errors(
    model: Model, graph: onnx.ModelProto, ranges: Mapping[str, float], corpus: Corpus
) -> tuple[dict[str, Any], list[float]]:
    """Mean error of each layer by channel, and the share that its energy is of all of the error's."""
    there, stft = layers(graph), Stft(model.spec.stft)
    session = cpu_session(doubled(graph, ranges), in_order=True)
    sums: dict[str, Any] = defaultdict(float)
    energy: Counter[str] = Counter()
    places: Counter[str] = Counter()
    step = max(1, len(corpus) // CHUNKS)
    for number, chunk in enumerate(corpus.calibration()):
        if number % step:
            continue
        found = session.run(None, {INPUT: pack(stft.forward(chunk.mixture[None]))})
        for layer, total, squares, size in zip(there, found[0::3], found[1::3], found[2::3], strict=True):
            sums[layer.name] += total.astype(np.float64)
            energy[layer.name] += float(squares)
            places[layer.name] += int(size) // total.size
    mean = {name: (total / places[name]).astype(np.float32) for name, total in sums.items()}
    return mean, [
        float(np.square(value, dtype=np.float64).sum()) * places[name] / energy[name]
        for name, value in mean.items()
        if energy[name] > 0
    ]


def corrected(graph: onnx.ModelProto, mean: Mapping[str, Any]) -> onnx.ModelProto:
    """A graph with the mean error of each layer taken from what the layer gives."""
    made = onnx.ModelProto()
    made.CopyFrom(graph)
    del made.graph.node[:]
    for node in graph.graph.node:
        made.graph.node.append(node)
        if node.name not in mean:
            continue
        value, output = mean[node.name], node.output[0]
        if node.op_type != "MatMul":
            value = value.reshape(1, -1, 1, 1)
        made.graph.initializer.append(onnx.numpy_helper.from_array(-value, f"{output}_tfx_bias"))
        made.graph.node[-1].output[:] = [f"{output}_tfx_raw"]
        made.graph.node.append(
            onnx.helper.make_node("Add", [f"{output}_tfx_raw", f"{output}_tfx_bias"], [output])
        )
    return made


def doubled(graph: onnx.ModelProto, ranges: Mapping[str, float]) -> onnx.ModelProto:
    """A graph that gives of each layer's error in 8 bits: its sum by channel, its energy, its size."""
    make = onnx.helper.make_node
    made = onnx.ModelProto()
    made.CopyFrom(graph)
    del made.graph.node[:], made.graph.output[:]
    weights = {tensor.name: tensor for tensor in graph.graph.initializer}
    kinds = {layer.name: layer for layer in layers(graph)}

    def constant(name: str, value: Any) -> str:
        made.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
        return name

    zero = constant("tfx_zero", np.array(0, np.int8))
    for node in graph.graph.node:
        made.graph.node.append(node)
        if node.name not in kinds:
            continue
        layer, own = kinds[node.name], f"{node.output[0]}_tfx"
        weight = rounded_weight(onnx.numpy_helper.to_array(weights[layer.weight]), layer.kind)
        scale = constant(f"{own}_scale", np.array(ranges[layer.name] / LEVELS, np.float32))
        coarse = onnx.NodeProto()
        coarse.CopyFrom(node)
        coarse.input[:2] = [f"{own}_x8", constant(f"{own}_w8", weight)]
        coarse.output[:], coarse.name = [f"{own}_y8"], own
        # Channels lie last in what a MatMul gives, second in what a convolution does.
        axis = constant(f"{own}_axes", np.array([0, 1] if layer.kind == "MatMul" else [0, 2], np.int64))
        shape = constant(
            f"{own}_shape",
            np.array(
                [1, -1, weight.shape[-1]] if layer.kind == "MatMul" else [1, channels(layer.kind, weight), -1]
            ),
        )
        made.graph.node.extend(
            [
                make("QuantizeLinear", [layer.activation, scale, zero], [f"{own}_q"]),
                make("DequantizeLinear", [f"{own}_q", scale, zero], [f"{own}_x8"]),
                coarse,
                make("Sub", [f"{own}_y8", node.output[0]], [f"{own}_error"]),
                make("Reshape", [f"{own}_error", shape], [f"{own}_flat"]),
                make("ReduceSum", [f"{own}_flat", axis], [f"{own}_sum"], keepdims=0),
                make("ReduceSumSquare", [f"{own}_flat"], [f"{own}_squares"], keepdims=0),
                make("Size", [f"{own}_flat"], [f"{own}_size"]),
            ]
        )
        made.graph.output.extend(
            onnx.helper.make_tensor_value_info(f"{own}_{what}", kind, None)
            for what, kind in (
                ("sum", onnx.TensorProto.FLOAT),
                ("squares", onnx.TensorProto.FLOAT),
                ("size", onnx.TensorProto.INT64),
            )
        )
    return made


def channels(kind: str, weight: Any) -> int:
    """Channels that a convolution without groups gives."""
    return int(weight.shape[0] if kind == "Conv" else weight.shape[1])


if __name__ == "__main__":
    main()
