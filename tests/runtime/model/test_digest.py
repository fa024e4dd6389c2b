"""A lone exported file that was damaged on its way is refused, wherever the damage is."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from planes import infer_planes

from tfswa.runtime.backends import BackendOptions, open_session
from tfswa.runtime.errors import BundleError
from tfswa.runtime.files.hashes import sha256_of
from tfswa.runtime.model import digest
from tfswa.runtime.model.opening import BundleModel, open_model

BITS = 500 if os.environ.get("TFX_LONG") else 50


@pytest.mark.parametrize("name", ["model.onnx", "model.ts"])
def test_one_flipped_bit_anywhere_is_refused(exported: BundleModel, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    shutil.copyfile(exported.bundle.path / name, path)
    opened = open_model(path)
    assert opened.artifact(*{"model.onnx": ("onnx", "fp32"), "model.ts": ("torchscript", "fp32")}[name]) == (
        name,
        sha256_of(path),
    )
    opened.file(name)
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    text = whole.index(b'"precision"')  # what the file says of itself, its digest at the end
    places = [*range(text - 20, text + 60), *range(len(whole) - 100, len(whole))]
    for place in [*map(int, random.integers(0, len(whole), BITS)), *places]:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(random.integers(8))
        path.write_bytes(flipped)
        with pytest.raises(BundleError) as error:
            open_model(path).file(name)
        assert "\n" not in str(error.value), place
    for cut in (0, 1, 64, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(BundleError):
            open_model(path)


def test_what_carries_a_digest_is_still_what_onnx_and_torch_read(exported: BundleModel) -> None:
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(exported.file("model.onnx"))
    onnx.checker.check_model(graph)
    assert {prop.key for prop in graph.metadata_props} == {"tfx", digest.KEY}
    planes = np.random.default_rng(1).standard_normal(exported.spec.input_shape(1), np.float32)
    made = [
        infer_planes(open_session(name, exported, BackendOptions()), planes)
        for name in ("ort", "torchscript")
    ]
    np.testing.assert_allclose(*made, atol=1e-4 * float(np.abs(made[0]).max()))


def test_a_file_of_an_older_tfx_opens_with_a_note(
    exported: BundleModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(exported.file("model.onnx"))
    text = next(prop.value for prop in graph.metadata_props if prop.key == "tfx")
    del graph.metadata_props[:]
    graph.metadata_props.add(key="tfx", value=text.replace('"sealed": true, ', ""))
    onnx.save(graph, tmp_path / "old.onnx")
    open_session("ort", open_model(tmp_path / "old.onnx"), BackendOptions()).close()
    assert "carries no digest" in caplog.text
