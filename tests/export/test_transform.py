"""The transform as graphs is the host's transform, for every specification."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Tfx
from specs import PLAIN, SPECS

from tfswa.runtime.backends.engines import quiet_noise
from tfswa.runtime.errors import ExportError, OutputExists
from tfswa.runtime.model.opening import open_model
from tfswa.runtime.model.spec import OUTPUT, ModelSpec

onnx = pytest.importorskip("onnx", reason="onnx is not installed: export needs it")
pytest.importorskip("torch", reason="torch is not installed: export needs it")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: it runs the graphs")

from tfswa.export import transform  # noqa: E402
from tfswa.export.session import cpu_session  # noqa: E402


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_graphs_are_the_hosts_transform(spec: ModelSpec) -> None:
    found = transform.transform_snr_db(spec, transform.encode_graph(spec), transform.decode_graph(spec))
    assert set(found) == {"planes", "stems"}
    assert min(found.values()) >= transform.LEAST_DB, found


def test_another_window_is_far_away() -> None:
    """What the gate is for: graphs of one specification are not those of another."""
    other = dataclasses.replace(PLAIN, stft=dataclasses.replace(PLAIN.stft, window="none"))
    found = transform.transform_snr_db(PLAIN, transform.encode_graph(other), transform.decode_graph(other))
    assert max(found.values()) < 30.0


def test_nothing_is_written_below_the_gate(
    plain_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mine.tfx"
    shutil.copytree(plain_bundle, path)
    monkeypatch.setattr(transform, "LEAST_DB", 200.0)
    with pytest.raises(ExportError, match=r"SNR 1\d\d\.\d dB, must be 200 dB; not written"):
        transform.export_transform(open_model(path))
    assert sorted(open_model(path).bundle.files) == ["model.safetensors"]  # type: ignore[union-attr]


def test_the_command_writes_both(tfx: Tfx, plain_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.tfx"
    shutil.copytree(plain_bundle, path)
    done = tfx("export", path, "--transform")
    assert done.code == 0, done.err
    assert done.out.count("dB SNR against the host's transform") == 2
    bundle = open_model(path).bundle
    assert bundle is not None
    for name in (transform.ENCODE, transform.DECODE):
        assert bundle.files[name].kind == transform.KIND
        onnx.checker.check_model(onnx.load(bundle.file(name)))
    with pytest.raises(OutputExists, match=r"encode\.onnx already"):
        transform.export_transform(open_model(path))
    assert tfx("export", path, "--transform", "--force").code == 0


@pytest.mark.parametrize(
    "more", [("--precision", "fp16"), ("--format", "torchscript"), ("-o", "x.tfx"), ("--opset", "18")]
)
def test_what_does_not_go_together_is_refused(tfx: Tfx, more: tuple[str, str]) -> None:
    done = tfx("export", "demo", "--transform", *more)
    assert done.code == 2
    assert f"--transform and {more[0]} {more[1]} do not go together" in done.err


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_nan_where_nobody_looks_is_not_heard(spec: ModelSpec) -> None:
    takes, _ = spec.transforms[transform.DECODE]
    given = quiet_noise(takes)
    session = cpu_session(transform.decode_graph(spec))
    (right,) = session.run(None, given)
    unused = max(0, spec.stft.zero_below - spec.stft.first_bin)
    given[OUTPUT][..., :unused] = np.nan
    (found,) = session.run(None, given)
    np.testing.assert_array_equal(found, right)


def test_cuda_has_a_kernel_for_every_operator() -> None:
    """ONNX Runtime takes a kernel without an end for the very version that it began with, and no later one.

    Beginnings as in its docs/OperatorKernels.md; without one, ``ort`` on CUDA could not open the graphs.
    """
    known = {
        **{"Add": 14, "Concat": 13, "Conv": 11, "ConvTranspose": 11, "Gather": 13, "Mul": 14, "Pad": 18},
        **{"Reshape": 14, "Slice": 13, "Split": 18, "Sub": 14, "Sum": 13, "Transpose": 13},
    }
    for spec in SPECS.values():
        for graph in (transform.encode_graph(spec), transform.decode_graph(spec)):
            (opset,) = (entry.version for entry in graph.opset_import)
            for kind in {node.op_type for node in graph.graph.node}:
                schema = onnx.defs.get_schema(kind, opset)
                assert schema.since_version == known[kind], kind


@pytest.mark.parametrize("make", [transform.encode_graph, transform.decode_graph])
def test_rtx_builds_them(make: Any) -> None:
    library = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: it builds engines")
    graph = make(PLAIN)
    log = library.Logger(library.Logger.ERROR)
    builder = library.Builder(log)
    network = builder.create_network(1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = library.OnnxParser(network, log)
    assert parser.parse(graph.SerializeToString()), [
        str(parser.get_error(i)) for i in range(parser.num_errors)
    ]
    profile, config = builder.create_optimization_profile(), builder.create_builder_config()
    for index in range(network.num_inputs):
        shape = (1, *network.get_input(index).shape[1:])
        profile.set_shape(network.get_input(index).name, shape, shape, shape)
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is not None
