"""ONNX: the network of a bundle as one graph, T fixed, only the batch free."""

from __future__ import annotations

import ast
import functools
import inspect
import logging
import math
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import onnxscript
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tfswa.export.artifact import Compared, Exported, bundle_of, produce
from tfswa.export.plan import QUANTIZED, TYPED, Precision, PrecisionPlan
from tfswa.export.precision import count_casts, typed
from tfswa.export.quantize import CALIBRATION, count_quantized, layers, load_ranges, quantize_graph
from tfswa.runtime.errors import ConfigError, ExportError, UsageError
from tfswa.runtime.model.bundle import GRAPH, Bundle
from tfswa.runtime.model.opening import BundleModel, Model
from tfswa.runtime.model.spec import ModelSpec
from tfswa.train.blocks.recurrent import whole_layers
from tfswa.train.published import PublishedNetwork, ends_of, read_graph
from tfswa.train.rewriting import sealed_message, to_contract

NAME = "model.onnx"
OPSET = 20
OPSETS = {"bf16": 22}  # older convolutions know no bfloat16
PUBLISHED_OPSETS = {**OPSETS, "mixed": 19}  # scales of float16 since 19
PLAN = "precision-plan.json"
OLDEST_OPSET = 18  # the oldest that torch writes
NEWEST_OPSET = 25  # the newest that onnxscript 0.7.2 converts to
BATCH = "batch"
SCOPES = "pkg.torch.onnx.name_scopes"  # as torch's exporter calls them
FEW = 4096  # numbers that a norm is of, to be one node
SMALL = 8192  # numbers: what is made of fewer is stored, be it larger
LIMIT_BYTES = (1 << 31) - (1 << 24)  # a protobuf message ends at 2 GiB; leave 16 MiB for the nodes


def export_onnx(
    model: Model,
    output: Path | None = None,
    *,
    precision: Precision = "fp32",
    plan: PrecisionPlan | None = None,
    low_io: bool = False,
    opset: int | None = None,
    audio: Path | None = None,
    compared_on: Compared | None = None,
    graph: onnx.ModelProto | None = None,
    force: bool = False,
) -> Exported:
    """Export a bundle to ``model.onnx`` or ``model.fp16.onnx`` and compare that with the eager network.

    Args:
        model: a bundle; one that was calibrated, for ``int8`` and ``mixed``.
        output: where a copy of the bundle goes; default: into the model's own bundle.
        precision: of what lies between the first and the last layer, see ``export/precision.py``; with
            ``int8`` the layers of the plan compute in 8 bits and all else in float32, with ``mixed`` all
            else in ``fp16``.
        plan: exceptions; not with ``fp32``. Default: for ``int8`` and ``mixed`` the bundle's own, which
            `tfx calibrate --sensitivity` made; where there is none, all that can be is quantized.
        low_io: input and output of the graph in ``fp16`` too; with that precision only.
        opset: version of the ONNX operators, 18 to 25; default: 20, of bf16 22. A published graph can
            be in its own too, which is then the default, from 13 on.
        audio: what to compare on; default: generated music.
        compared_on: likewise, as two chunks ``[2, 2*C, T, F]``, and what to call them.
        graph: the bundle's own in float32 and without metadata, from a caller that has read it; it is not
            modified. Default: it is read where it is needed.
        force: replace an existing artifact or ``output``.

    Raises:
        UsageError: options that do not go together, an opset out of range, the model is an exported file,
            or INT8 is asked of one that was not calibrated.
        ConfigError: the plan is of other weights, names what the graph does not have, or has nothing in INT8
            for a graph that is to be quantized.
        OutputExists: the artifact or ``output`` is there and ``force`` is False.
        ExportError: the graph cannot be made, differs from eager, or overflows; nothing is written.
    """
    bundle = bundle_of(model, "export")
    oldest, usual = _opsets(model, precision)
    opset = usual if opset is None else opset
    _check_request(precision, plan, low_io, opset, oldest, usual)
    ranges = load_ranges(model) if precision in QUANTIZED else {}
    if precision in QUANTIZED and plan is None:
        plan = _own_plan(bundle)
    recipe = _Recipe(precision, plan or PrecisionPlan(), ranges, low_io, opset, graph)
    return produce(
        model,
        NAME if precision == "fp32" else f"model.{precision}.onnx",
        "onnx",
        functools.partial(_convert, bundle, model.spec, recipe),
        precision,
        output=output,
        audio=audio,
        compared_on=compared_on,
        force=force,
    )


@dataclass(frozen=True)
class _Recipe:
    """How a graph is made; see ``export_onnx``."""

    precision: Precision
    plan: PrecisionPlan
    ranges: Mapping[str, float]
    low_io: bool
    opset: int
    read: onnx.ModelProto | None


def _opsets(model: Model, precision: Precision) -> tuple[int, int]:
    """The oldest opset that a model's graph can be in, and the usual one: a published graph keeps its own."""
    if model.spec.family is not None:
        return OLDEST_OPSET, OPSETS.get(precision, OPSET)
    path = model.file(GRAPH)
    own = ends_of(path, read_graph(path)).least_opset
    return own, max(own, PUBLISHED_OPSETS.get(precision, own))


def _check_request(
    precision: Precision, plan: PrecisionPlan | None, low_io: bool, opset: int, oldest: int, usual: int
) -> None:
    """Refuse options that do not go together."""
    if precision == "bf16" and opset < OPSETS["bf16"]:
        raise UsageError(f"opset {opset} has no convolution in bf16: use {OPSETS['bf16']} or newer")
    if not oldest <= opset <= NEWEST_OPSET:
        raise UsageError(f"opset {opset} is not one of {oldest} to {NEWEST_OPSET}: use {usual}")
    if precision == "fp32" and plan is not None:
        raise UsageError("a precision plan says what stays fp32, asked for is fp32 altogether: leave it out")
    if low_io and precision != "fp16":
        raise UsageError(f"inputs and outputs in fp16 are for precision fp16, asked for is {precision}")


def _convert(
    bundle: Bundle, spec: ModelSpec, recipe: _Recipe, network: nn.Module, path: Path
) -> dict[str, Any]:
    """Write the graph of a network; return what the manifest says of it."""
    precision, plan, opset = recipe.precision, recipe.plan, recipe.opset
    graph = _calibrated(bundle, opset, recipe.read) if precision in QUANTIZED else None
    if graph is None and isinstance(network, PublishedNetwork):
        graph = to_contract(network.path, spec, opset)
    elif graph is None:
        graph = build_graph(network, spec, opset)
    plan.check(bundle.digest, [node.name for node in graph.graph.node])
    able = [layer.name for layer in layers(graph)]
    if precision in TYPED:
        graph = _checked(typed(graph, TYPED[precision], plan=plan, low_io=recipe.low_io), spec, opset)
    if precision in QUANTIZED:
        names = [name for name in able if plan.quantizes(name)]
        if not names:
            raise ConfigError(
                f"the precision plan has no layer in 8 bits, asked for is {precision}: use fp32, fp16 or "
                "bf16, or name another plan with --plan"
            )
        graph = _checked(quantize_graph(graph, recipe.ranges, names), spec, opset)
    path.write_bytes(sealed_message(graph, spec, precision, bundle.digest))
    details = {
        "opset": opset,
        "nodes": len(graph.graph.node),
        "casts": count_casts(graph),
        "io": "fp16" if recipe.low_io else "fp32",
        "plan": list(plan.fp32),
        "torch": torch.__version__,
        "onnxscript": onnxscript.__version__,
    }
    if precision in QUANTIZED:
        details |= {"quantized": count_quantized(graph), "layers": len(able)}
    return details


def build_graph(network: nn.Module, spec: ModelSpec, opset: int = OPSET) -> onnx.ModelProto:
    """Turn a network into a checked graph, whose inputs and outputs are what the spec takes and gives.

    Of most networks: ``mixture [batch, 2*C, T, F] -> stems [batch, S, 2*C, T, F]``.

    Args:
        network: in eval mode, float32, on the CPU.
        spec: its contract.
        opset: version of the ONNX operators.

    Raises:
        ExportError: torch cannot express the network in ONNX, or the graph breaks ONNX's rules or ours.
    """
    size = sum(tensor.nbytes for tensor in network.state_dict().values())
    if size > LIMIT_BYTES:
        raise ExportError(
            f"{size} bytes of weights do not fit one ONNX file, at most {LIMIT_BYTES}: not written"
        )
    # 2 items: torch.export takes a size of 1 for a constant
    example = tuple(torch.zeros(2, *shape) for shape in spec.takes.values())
    shapes = _free_batch(network, spec)
    with _quiet(), sdpa_kernel(SDPBackend.MATH), torch.no_grad(), whole_layers():
        try:
            program = torch.onnx.export(
                _without_loops(network, example, shapes),
                example,
                dynamo=True,
                optimize=False,
                verbose=False,
                opset_version=opset,
                input_names=list(spec.takes),
                output_names=list(spec.gives),
                dynamic_shapes=shapes,
                custom_translation_table=TRANSLATIONS,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise ExportError(
                f"torch cannot export {spec.family_in_words} to opset {opset}: {_last_line(error)}"
            ) from error
    assert program is not None
    _simplify(program.model)
    return _checked(program.model_proto, spec, opset)


def _free_batch(network: nn.Module, spec: ModelSpec) -> Any:
    """What torch.export wants to know of each argument: its batch is free, one for all of them."""
    free = {0: torch.export.Dim(BATCH)}
    arguments = inspect.signature(network.forward).parameters.values()
    named = sum(argument.kind is not inspect.Parameter.VAR_POSITIONAL for argument in arguments)
    each = [free for _ in spec.takes]
    return tuple(each) if named >= len(each) else (*each[:named], tuple(each[named:]))


def _without_loops(network: nn.Module, example: Any, shapes: Any) -> Any:
    """Return what torch.onnx is to convert: the network, or of one with LSTMs the program that it makes.

    Where the batch is free, torch.onnx would take an LSTM apart into a loop over the frames (torch 2.13), of
    networks that call it without ``heard``.
    """
    if not any(isinstance(module, nn.LSTM) for module in network.modules()):
        return network
    return torch.export.export(network, example, dynamic_shapes=shapes, strict=False)


def _simplify(model: ir.Model) -> None:
    """Fold constants and shapes, in place, and nothing that rounds.

    torch's own optimizer is not used: its rule for ``x + 0`` takes every constant up to 1e-8 for 0, so that
    ``sqrt(x + 1e-8)`` loses what keeps silence finite, and its ``x * 1`` allows 1e-5 (onnxscript 0.7.2).
    It is also half of the time of an export.
    """
    from onnx_ir.passes import common
    from onnxscript.optimizer import fold_constants
    from onnxscript.rewriter import rewrite
    from onnxscript.rewriter.rules.common import (
        collapse_slice2_rule,
        collapse_slice_rule,
        materialize_reshape_shape_rule,
        no_op_transpose_rule,
        transpose_transpose_rule,
    )

    rules = (
        materialize_reshape_shape_rule,
        collapse_slice_rule,
        collapse_slice2_rule,
        no_op_transpose_rule,
        transpose_transpose_rule,
    )
    common.InlinePass()(model)
    # Weights of any size: a slice or a factor of one is not to be computed anew in every session.
    fold_constants(
        model, should_fold=_worth_folding, input_size_limit=LIMIT_BYTES, output_size_limit=LIMIT_BYTES
    )
    rewrite(model, rules)
    common.IdentityEliminationPass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    # Large ones too: every shifted block holds the same 64 KB of window masks.
    common.DeduplicateInitializersPass(size_limit=LIMIT_BYTES)(model)
    common.CommonSubexpressionEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedOpsetsPass()(model)
    _name_nodes(model)
    # Where in Python each node came from: a quarter of the file, and names of folders.
    common.ClearMetadataAndDocStringPass()(model)
    model.producer_name, model.producer_version = "tfx", version("tfswa")


def _name_nodes(model: ir.Model) -> None:
    """Name every node after the module of the network that it came from: ``encoder.1.conv.first/Conv``.

    Engines, profilers and precision plans speak of nodes by their names.
    """
    taken: Counter[str] = Counter()
    for node in model.graph:
        scopes = ast.literal_eval(node.metadata_props.get(SCOPES, "[]"))  # the last is the operation's own
        name = f"{scopes[-2] if len(scopes) > 1 else ''}/{node.op_type}".removeprefix("/")
        taken[name] += 1
        node.name = name if taken[name] == 1 else f"{name}_{taken[name]}"


def _worth_folding(node: ir.Node) -> bool | None:
    """Keep as such what would be larger than what it is made of.

    A level's window masks are 20 KB, their plane up to 32 MB; added to the biases of 8 heads, 8 x as large.

    Returns:
        False to keep a node, None to let the folder decide.
    """
    made = node.outputs[0]
    if made.dtype in {ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL}:
        return None
    of = [_count(value) for value in node.inputs if value is not None]
    grows = max(of, default=0) > SMALL and _count(made) > sum(of)
    return False if grows or node.op_type in ("Expand", "Tile") else None


def _count(value: ir.Value) -> int:
    """Numbers that a value holds, 0 where that is not known."""
    sizes = [] if value.shape is None else list(value.shape)
    return math.prod(size for size in sizes if isinstance(size, int)) if sizes else 0


def _checked(graph: onnx.ModelProto, spec: ModelSpec, opset: int) -> onnx.ModelProto:
    """Check a graph, its value infos inferred anew: the exporter's are from before its optimizer."""
    del graph.graph.value_info[:]
    try:
        onnx.checker.check_model(graph, full_check=True)
        graph = onnx.shape_inference.infer_shapes(graph, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            f"the graph of {spec.family_in_words} breaks ONNX's rules: {_last_line(error)}"
        ) from error
    wanted = {name: [BATCH, *shape] for name, shape in (spec.takes | spec.gives).items()}
    found = {value.name: _shape(value) for value in (*graph.graph.input, *graph.graph.output)}
    if found != wanted:
        raise ExportError(
            f"the graph of {spec.family_in_words} has inputs and outputs {found}, its spec says {wanted}"
        )
    opsets = {entry.domain: entry.version for entry in graph.opset_import}
    if opsets != {"": opset} or graph.functions:
        raise ExportError(
            f"the graph of {spec.family_in_words} needs operators {opsets}, asked for is opset {opset} alone"
        )
    return graph


def _calibrated(bundle: Bundle, opset: int, read: onnx.ModelProto | None) -> onnx.ModelProto | None:
    """The graph that a bundle was calibrated on, as ``build_graph`` gave it; None if of another opset.

    To trace it anew would give the same, and take most of the time and of the memory of the export.
    """
    name = bundle.find("onnx", "fp32")
    if name is None or bundle.files[name].details.get("opset") != opset:
        return None
    if read is not None:
        return read
    graph = onnx.load(BundleModel(str(bundle.path), bundle).file(name))
    del graph.metadata_props[:]
    return graph


def _own_plan(bundle: Bundle) -> PrecisionPlan | None:
    """The plan that was found for a bundle; None where there is none."""
    if PLAN not in bundle.files:
        return None
    made_with = bundle.files[PLAN].details.get("calibration")
    if made_with != bundle.files[CALIBRATION].sha256:
        raise ConfigError(
            f"{PLAN} of {bundle.path} was made with another calibration: make it again with "
            "`tfx calibrate --sensitivity`, or name one with --plan"
        )
    return PrecisionPlan.load(bundle.file(PLAN))


def _shape(value: onnx.ValueInfoProto) -> list[int | str]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Attention written out in six nodes, five where queries come scaled, ``[B, H, L, D/H]``.

    torch's own translation computes the shape of the transposed key at run time, fourteen nodes more a
    block; ONNX's Attention (opset 23) has no TensorRT-RTX kernel for windowed heads.
    """
    if dropout_p or is_causal or enable_gqa:
        raise ExportError("attention with dropout, causal masks or grouped queries is not exported")
    op = _operators()
    factor = float(query.shape[-1]) ** -0.5 if scale is None else scale
    if factor != 1.0:
        query = op.Mul(query, op.CastLike(factor, query))
    scores = op.MatMul(query, op.Transpose(key, perm=[0, 1, 3, 2]))
    if attn_mask is not None:
        scores = op.Add(scores, attn_mask)
    return op.MatMul(op.Softmax(scores, axis=-1), value)


def _roll(x: Any, shifts: Sequence[int], dims: Sequence[int] = ()) -> Any:
    """A cyclic shift along axes of known length: two slices and a concatenation each.

    torch's own translation divides the shift by the length at run time.
    """
    if not dims:
        raise ExportError("a roll of the flattened tensor is not exported: name its dims")
    op = _operators()
    lengths = [x.shape[dim] for dim in dims]
    for shift, dim, length in zip(shifts, dims, lengths, strict=True):
        if not isinstance(length, int):
            raise ExportError("a roll along the batch is not exported: items are independent")
        cut = -shift % length
        x = op.Concat(op.Slice(x, [cut], [length], [dim]), op.Slice(x, [0], [cut], [dim]), axis=dim)
    return x


def _group_norm(
    x: Any, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, cudnn_enabled: bool = True
) -> Any:
    """A norm of few numbers as one node; of many with means of means, ``[B, D, ...]``.

    ONNX Runtime adds up what one InstanceNormalization squares number by number: of spectra of 256 frames
    and 1024 bins 81 dB are left, with means of means 131 (1.31.1, CPU). torch's own translation is that node,
    with twice the nodes around it.
    """
    op = _operators()
    channels, *sizes = x.shape[1:]
    if not all(isinstance(size, int) for size in (channels, *sizes)):
        raise ExportError("a group norm along the batch is not exported: items are independent")
    each = [channels, *[1] * len(sizes)]
    whole = weight is not None and bias is not None and groups == channels
    if channels // groups * math.prod(sizes) > FEW:
        parts = x if groups == channels else op.Reshape(x, [0, groups, -1, sizes[-1]])
        last = range(2, 2 + len(sizes)) if groups == channels else (2, 3)
        apart = op.Sub(parts, _mean_of_means(parts, last))
        root = op.Sqrt(op.Add(_mean_of_means(op.Mul(apart, apart), last), op.Constant(value_floats=[eps])))
        if whole:
            return op.Add(op.Mul(apart, op.Div(op.Reshape(weight, each), root)), op.Reshape(bias, each))
        parts = op.Div(apart, root)
    elif whole:
        return op.InstanceNormalization(x, weight, bias, epsilon=eps)
    else:
        ones, zeros = (op.Constant(value_floats=[value] * groups) for value in (1.0, 0.0))
        parts = op.InstanceNormalization(op.Reshape(x, [0, groups, -1]), ones, zeros, epsilon=eps)
    found = op.Reshape(parts, [0, channels, *sizes])
    if weight is not None:
        found = op.Mul(found, op.Reshape(weight, each))
    return found if bias is None else op.Add(found, op.Reshape(bias, each))


def _mean_of_means(x: Any, axes: Sequence[int]) -> Any:
    """The mean along axes, one after the other, the last one first."""
    op = _operators()
    for axis in reversed(axes):
        x = op.ReduceMean(x, [axis])
    return x


def _operators() -> Any:
    """ONNX's operators as functions; annotated for tensors only, though they take constants."""
    from onnxscript import opset18

    return opset18


def _recurrent(x: Any, weights: Sequence[Any], mode: str) -> Any:
    """Bidirectional layers as ONNX's ``LSTM`` or ``GRU``, ``[T, B, D]``: see ``blocks.recurrent``."""
    op = _operators()
    order = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2)}[mode]  # torch's gates as ONNX has them
    hidden = weights[1].shape[1]

    def ordered(one: Any) -> Any:
        gates = [op.Slice(one, [gate * hidden], [(gate + 1) * hidden], [0]) for gate in order]
        return op.Concat(*gates, axis=0)

    for start in range(0, len(weights), 8):
        each = [ordered(one) for one in weights[start : start + 8]]
        new, old = (op.Concat(*(op.Unsqueeze(each[k], [0]) for k in (at, at + 4)), axis=0) for at in (0, 1))
        biases = (op.Concat(each[k], each[k + 1], axis=0) for k in (2, 6))
        bias = op.Concat(*(op.Unsqueeze(one, [0]) for one in biases), axis=0)
        told = {"hidden_size": hidden, "direction": "bidirectional"}
        if mode == "LSTM":
            found, _, _ = op.LSTM(x, new, old, bias, **told)
        else:
            found, _ = op.GRU(x, new, old, bias, linear_before_reset=1, **told)
        x = op.Reshape(op.Transpose(found, perm=[0, 2, 1, 3]), [0, 0, 2 * hidden])
    return x


TRANSLATIONS: dict[Any, Any] = {
    torch.ops.aten.scaled_dot_product_attention.default: _attention,
    torch.ops.aten.roll.default: _roll,
    torch.ops.aten.group_norm.default: _group_norm,
    torch.ops.tfswa.recurrent.default: _recurrent,
}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's own affairs from the user: nothing in them can be acted upon."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)  # it warns that torchvision, which no network here uses, is not installed
    try:
        with warnings.catch_warnings():
            # torch 2.13 copies its own deprecated LeafSpec while it traces.
            warnings.filterwarnings("ignore", r".*treespec, LeafSpec", FutureWarning)
            # All inputs share one batch, which it would name once for each of them.
            warnings.filterwarnings("ignore", r".*axis name: batch will not be used", UserWarning)
            # An LSTM lists its own parameters, which torch puts others in the place of while it traces.
            warnings.filterwarnings("ignore", r"The tensor attributes self\..*\._flat_weights", UserWarning)
            yield
    finally:
        log.setLevel(level)


def _last_line(error: Exception) -> str:
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return str(cause).strip().splitlines()[-1]
