"""What each group of layers costs in each precision: seconds measured in OpenVINO, or products counted."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tfswa.calibration.groups import Group
from tfswa.calibration.simulate import FULL, HALF, INT8
from tfswa.runtime.errors import BackendUnavailable
from tfswa.runtime.machine import cores
from tfswa.runtime.model.spec import ModelSpec

Costs = dict[str, dict[str, float]]  # by group, by precision

COUNTED = {FULL: 1.0, HALF: 0.5, INT8: 0.25}  # of a product, as wide as its numbers
PASSES, ROUNDS = 2, 4  # over the precisions, of each


def counted(groups: Mapping[str, Group]) -> Costs:
    """Shares of the float32 network's products, a quarter of each in 8 bits."""
    whole = sum(group.macs for group in groups.values()) or 1
    return {
        name: {kind: group.macs / whole * factor for kind, factor in COUNTED.items()}
        for name, group in groups.items()
    }


def measured(groups: Mapping[str, Group], full: Path, int8: Path, spec: ModelSpec, half: str) -> Costs:
    """Seconds of a chunk by OpenVINO on this CPU, by group; of all groups together, the whole network's.

    Args:
        groups: of layers.
        full: the float32 graph.
        int8: the graph with all groups in 8 bits.
        spec: the model's contract.
        half: ``bf16``: OpenVINO's other precision on a CPU.

    Raises:
        BackendUnavailable: openvino is missing, or this CPU has no bfloat16.
    """
    from tfswa.runtime.backends.openvino import process_core

    core = process_core()
    if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") or half != "bf16":
        raise BackendUnavailable(f"openvino has no {half} on this CPU: count the cost with --cost counted")
    hints = {FULL: (full, "f32"), HALF: (full, "bf16"), INT8: (int8, "bf16")}
    planes = np.random.default_rng(0).standard_normal(spec.input_shape(1)).astype(np.float32)
    times: dict[str, list[dict[str, float]]] = defaultdict(list)
    for _ in range(PASSES):  # in turns, so that what else the machine does falls on all of them
        for kind, (path, hint) in hints.items():
            request, owner = _compiled(core, path, hint, spec, groups)
            request.infer([planes])  # the first is slower
            for _ in range(ROUNDS):
                request.infer([planes])
                found: dict[str, float] = defaultdict(float)
                for info in request.profiling_info:
                    found[owner.get(info.node_name, "")] += info.real_time.total_seconds()
                times[kind].append(found)
            del request  # before there is a second network in memory
    costs: Costs = {name: {} for name in groups}
    for kind, rounds in times.items():
        for name in groups:
            costs[name][kind] = float(np.median([found.get(name, 0.0) for found in rounds]))
    return costs


def ratio(one: tuple[Path, str], two: tuple[Path, str], spec: ModelSpec) -> float:
    """Time of a graph beside that of another in OpenVINO, both whole, in turns.

    Args:
        one: what the other is measured against; and what is not in 8 bits there is computed in, ``f32`` or
            ``bf16``.
        two: the other, likewise.
        spec: the contract of both.
    """
    from tfswa.runtime.backends.openvino import process_core

    core = process_core()
    requests = [_request(core, path, precision, spec) for path, precision in (one, two)]
    planes = np.random.default_rng(0).standard_normal(spec.input_shape(1)).astype(np.float32)
    times: list[list[float]] = [[], []]
    for turn in range(1 + PASSES * ROUNDS):
        for request, found in zip(requests, times, strict=True):
            start = time.perf_counter()
            request.infer([planes])
            if turn:  # the first is slower
                found.append(time.perf_counter() - start)
    return float(np.median(times[1]) / np.median(times[0]))


def _compiled(
    core: Any, path: Path, hint: str, spec: ModelSpec, groups: Mapping[str, Group]
) -> tuple[Any, dict[str, str]]:
    """A request that counts, and the group of each node that it runs."""
    request = _request(core, path, hint, spec, PERF_COUNT=True)
    nodes = request.get_compiled_model().get_runtime_model().get_ordered_ops()
    return request, _owners(nodes, groups)


def _request(core: Any, path: Path, hint: str, spec: ModelSpec, **settings: Any) -> Any:
    network = core.read_model(path)
    network.reshape({network.inputs[0]: list(spec.input_shape(1))})
    settings |= {
        "INFERENCE_PRECISION_HINT": hint,
        "INFERENCE_NUM_THREADS": cores(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    return core.compile_model(network, "CPU", settings).create_infer_request()


def _owners(nodes: list[Any], groups: Mapping[str, Group]) -> dict[str, str]:
    """The group of each node; what has no name of a module belongs to what it is for.

    Of normalizations, of what rounds to 8 bits, and of some products in 8 bits OpenVINO keeps no such name;
    left out, these would make a precision look cheaper than it is.
    """
    owner: dict[str, str] = {}
    for node in reversed(nodes):
        information = node.get_rt_info()
        made_of = (
            str(information["originalLayersNames"].astype(str))
            if "originalLayersNames" in information
            else ""
        )
        users = (end.get_node() for output in node.outputs() for end in output.get_target_inputs())
        found = _owner(made_of.split(","), groups)
        owner[node.get_friendly_name()] = found or _first(users, owner)
    for node in nodes:  # what comes after the last layer
        name = node.get_friendly_name()
        owner[name] = owner[name] or _first((end.get_node() for end in node.input_values()), owner)
    return owner


def _first(nodes: Iterable[Any], owner: Mapping[str, str]) -> str:
    """The owner of the first node that has one."""
    return next(filter(None, (owner.get(node.get_friendly_name()) for node in nodes)), "")


def _owner(names: list[str], groups: Mapping[str, Group]) -> str:
    """The group that a fused node belongs to: that of the last of its parts which has one.

    OpenVINO keeps the names that nodes had in ONNX, which are those of modules.
    """
    for name in reversed(names):
        module = name.partition("/")[0].split(".")
        for parts in range(len(module), 0, -1):
            prefix = ".".join(module[:parts])
            if prefix in groups:
                return prefix
    return ""
