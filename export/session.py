"""An ONNX graph in ONNX Runtime on the CPU, to be measured and not to be shipped."""

from __future__ import annotations

from typing import Any

import onnx

from tfswa.runtime.files.partial import temporary
from tfswa.runtime.machine import cores


def cpu_session(
    graph: onnx.ModelProto, *, in_order: bool = False, optimized: bool = True, folded: bool = True
) -> Any:
    """Open a graph.

    Args:
        graph: in whatever precision.
        in_order: run nodes in the order of the file. By its own ONNX Runtime takes what hangs beside a
            network last, and keeps every activation till then.
        optimized: let ONNX Runtime fuse nodes; where not, it computes them as they stand.
        folded: let it compute ahead, and keep, what depends on no input.

    Returns:
        An ``onnxruntime.InferenceSession``.
    """
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads = cores()
    settings.enable_cpu_mem_arena = False  # it keeps what was freed, and takes more with each size
    if in_order:
        settings.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    if not optimized:
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    with temporary("graph") as folder:
        path = folder / "model.onnx"
        path.write_bytes(graph.SerializeToString())
        return onnxruntime.InferenceSession(
            str(path),
            settings,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=[] if folded else ["ConstantFolding"],
        )
