"""TorchScript: the network of a bundle, traced, for hosts that load libtorch and nothing else."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tfswa.export.artifact import Exported, bundle_of, check_weights, produce
from tfswa.runtime.backends.torchscript import jit_allowed
from tfswa.runtime.model.digest import close_archive
from tfswa.runtime.model.opening import METADATA, Model, embed
from tfswa.runtime.model.spec import ModelSpec

NAME = "model.ts"


def export_torchscript(
    model: Model,
    output: Path | None = None,
    *,
    audio: Path | None = None,
    force: bool = False,
) -> Exported:
    """Export a bundle to ``model.ts`` and compare that with the eager network.

    Args:
        model: a bundle.
        output: where a copy of the bundle goes; default: into the model's own bundle.
        audio: what to compare on; default: generated music.
        force: replace an existing artifact or ``output``.

    Raises:
        UsageError: the model is an exported file, or a published graph without weights.
        OutputExists: the artifact or ``output`` is there and ``force`` is False.
        ExportError: the graph differs from eager; nothing is written.
    """
    check_weights(model, "TorchScript")
    carried = {f"{METADATA}.json": embed(model.spec, "fp32", bundle_of(model, "export").digest, sealed=True)}

    def convert(network: nn.Module, path: Path) -> dict[str, Any]:
        with jit_allowed():
            torch.jit.save(trace(network, model.spec), path, _extra_files=carried)
        close_archive(path)
        return {"torch": torch.__version__}

    return produce(model, NAME, "torchscript", convert, output=output, audio=audio, force=force)


def trace(network: nn.Module, spec: ModelSpec) -> torch.jit.ScriptModule:
    """Trace a network; the result takes any batch and runs on the device it is loaded to.

    Args:
        network: in eval mode, on the CPU.
        spec: its contract.
    """
    # The comparison with eager comes later, on music; torch's own would repeat the trace on zeros.
    with jit_allowed(), torch.no_grad():
        given = tuple(torch.zeros(2, *shape) for shape in spec.takes.values())
        # An LSTM compares the width of its input with its own, which no batch changes.
        said = "Converting a tensor to a Python boolean"
        warnings.filterwarnings("ignore", said, module=r"torch\.nn\.modules\.rnn")
        traced = torch.jit.trace(network, given, check_trace=False)  # type: ignore[no-untyped-call]
        frozen: torch.jit.ScriptModule = torch.jit.freeze(traced)
    _free_device(frozen.graph)
    return frozen


def _free_device(graph: Any) -> None:
    """Let tensors that the network makes itself follow the mixture's device.

    A trace writes down the device that it ran on, so that ``torch.arange(n, device=x.device)`` would stay
    on the CPU in a module that was loaded to a GPU.
    """
    mixture = list(graph.inputs())[1]
    device = graph.create("prim::device", [mixture], 1)
    graph.prependNode(device)
    device.output().setType(torch._C.DeviceObjType.get())
    for constant in graph.findAllNodes("prim::Constant"):
        if constant.output().type().kind() == "DeviceObjType":
            constant.output().replaceAllUsesWith(device.output())
