"""From what is typed to an open model: bundles, names, exported files, and everything that is none."""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tfswa.runtime.errors import BackendUnavailable, BundleError, TfxError, UsageError
from tfswa.runtime.files.hashes import sha256_of
from tfswa.runtime.model import onnx_file, opening
from tfswa.runtime.model.bundle import MANIFEST, Bundle
from tfswa.runtime.model.opening import METADATA, embed, open_model
from tfswa.runtime.model.spec import ModelSpec

SaveOnnx = Callable[..., Path]


@pytest.fixture
def save_onnx(tmp_path: Path) -> SaveOnnx:
    """``save_onnx(metadata, weights)``: a graph of one Add with an initializer of that many weights."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed: it makes the files that are read here")

    def save(metadata: dict[str, str], weights: int = 4, name: str = "model.onnx") -> Path:
        helper, kind = onnx.helper, onnx.TensorProto.FLOAT
        table = onnx.numpy_helper.from_array(np.arange(weights, dtype=np.float32), "w")
        graph = helper.make_graph(
            [helper.make_node("Add", ["x", "w"], ["y"])],
            "add",
            [helper.make_tensor_value_info("x", kind, [weights])],
            [helper.make_tensor_value_info("y", kind, [weights])],
            [table],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], producer_name="tests")
        helper.set_model_props(model, metadata)
        path = tmp_path / name
        onnx.save(model, path)
        return path

    return save


@pytest.fixture
def carried(tiny_spec: ModelSpec) -> str:
    return embed(tiny_spec, "fp16", "digest of the bundle")


def save_zip(path: Path, files: dict[str, str], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def save_identity(torch: Any, path: Path, extra: dict[str, str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit as such is on its way out
        torch.jit.save(torch.jit.trace(torch.nn.Identity(), torch.zeros(1)), str(path), _extra_files=extra)


def test_a_bundle_by_its_path(tiny_bundle: Bundle) -> None:
    for name in (tiny_bundle.path, str(tiny_bundle.path)):
        model = open_model(name)
        assert model.name == str(name)
        assert model.spec == tiny_bundle.spec
        assert model.bundle is not None
        assert model.bundle.digest == tiny_bundle.digest


def test_a_bundle_gives_its_artifacts_checked(tiny_bundle: Bundle) -> None:
    tiny_bundle.add("model.fp16.onnx", b"\x08\x0a", kind="onnx", precision="fp16")
    model = open_model(tiny_bundle.path)
    name, digest = model.artifact("onnx", "fp16")
    assert name == "model.fp16.onnx"
    assert digest == sha256_of(model.file(name))
    model.file(name).write_bytes(b"h")
    with pytest.raises(BundleError, match="damaged"):
        model.file(name)


@pytest.mark.parametrize(
    ("kind", "how"), [("onnx", "--format onnx"), ("torchscript", "--format torchscript"), ("engine", "")]
)
def test_a_missing_artifact_says_how_to_make_it(tiny_bundle: Bundle, kind: str, how: str) -> None:
    with pytest.raises(BackendUnavailable, match=f"holds no {kind} artifact in fp32.*{how}") as error:
        open_model(tiny_bundle.path).artifact(kind, "fp32")
    assert error.value.exit_code == 4


def test_a_named_model(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(opening, "model_names", lambda: {"demo": tiny_bundle.path})
    monkeypatch.chdir(tmp_path)
    assert open_model("demo").spec == tiny_bundle.spec
    assert open_model("demo").name == "demo"
    # A path wins over a name, or a user's own demo/ could not be opened.
    (tmp_path / "demo").mkdir()
    with pytest.raises(BundleError, match="not a bundle"):
        open_model("demo")


def test_a_bundle_in_the_users_cache_has_a_name(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert list(opening.model_names()) == ["demo"]
    for name in ("mine", "Mine 2.1", "demo"):  # the last cannot take the embedded one's place
        Bundle.create(opening.named_model(name), tiny_bundle.spec, tiny_bundle.weights())
    (opening.named_model("x").parent / "empty.tfx").mkdir()
    (opening.named_model("x").parent / ".mine.tfx.partial-7").mkdir()
    assert list(opening.model_names()) == ["demo", "Mine 2.1", "mine"]
    assert opening.model_names()["demo"].parent == Path(opening.__file__).parents[1]
    assert open_model("mine").spec == tiny_bundle.spec
    with pytest.raises(UsageError, match=r"no model 'yours'.*demo, Mine 2\.1, mine"):
        open_model("yours")


def test_an_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(UsageError, match=r"no model 'dmeo'.*demo") as error:
        open_model("dmeo")
    assert error.value.exit_code == 2


def test_a_folder_that_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=MANIFEST):
        open_model(tmp_path)


@pytest.mark.parametrize("name", ["song.wav", "model", "model.pt", "model.engine"])
def test_files_of_other_kinds_are_refused_by_their_ending(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(BundleError, match=r"a \.onnx, \.ts or \.pt2 file"):
        open_model(tmp_path / name)


def test_an_onnx_file_opens_alone(save_onnx: SaveOnnx, carried: str, tiny_spec: ModelSpec) -> None:
    path = save_onnx({"author": "x", METADATA: carried, "z": "last"})
    model = open_model(path)
    assert model.spec == tiny_spec
    assert model.bundle is None
    assert model.artifact("onnx", "fp16") == ("model.onnx", sha256_of(path))
    assert model.file("model.onnx") == path
    for kind, precision in (("onnx", "fp32"), ("torchscript", "fp16")):
        with pytest.raises(BackendUnavailable, match=rf"onnx in fp16.*{kind} in {precision}"):
            model.artifact(kind, precision)


def test_metadata_after_a_large_graph_is_what_onnx_itself_reads(save_onnx: SaveOnnx, carried: str) -> None:
    import onnx

    # More than 2^21 bytes, so that the graph's length takes four bytes; and keys that only look like ours.
    long = "ß" * 40_000
    props = {"tfx2": "no", "xtfx": "no", "long": long, METADATA: carried, "": "empty key", "empty value": ""}
    path = save_onnx(props, weights=600_000)
    theirs = {prop.key: prop.value for prop in onnx.load(path).metadata_props}
    assert path.stat().st_size > 2**21
    assert onnx_file.read_metadata(path, METADATA) == theirs[METADATA] == carried


def test_an_onnx_file_without_our_metadata(save_onnx: SaveOnnx) -> None:
    for metadata in ({}, {"author": "someone", "spec": "{}"}):
        with pytest.raises(BundleError, match=r"carries no tfx spec.*tfx export"):
            open_model(save_onnx(metadata))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        "{}",
        '{"spec": {}}',
        '{"spec": null, "precision": "fp32"}',
        '{"precision": "fp32"}',
    ],
)
def test_a_damaged_spec_is_refused_naming_the_file(save_onnx: SaveOnnx, tmp_path: Path, text: str) -> None:
    for path in (
        save_onnx({METADATA: text}),
        save_zip(tmp_path / "model.ts", {f"model/extra/{METADATA}.json": text}),
    ):
        with pytest.raises(BundleError, match=path.name) as error:
            open_model(path)
        assert "\n" not in str(error.value)


def test_a_file_of_a_later_spec_says_so(save_onnx: SaveOnnx, carried: str) -> None:
    later = carried.replace('"spec_version": 1', '"spec_version": 9')
    with pytest.raises(BundleError, match=r"model\.onnx.*spec version 9 is not 1"):
        open_model(save_onnx({METADATA: later}))


def test_a_torchscript_file_opens_alone(tmp_path: Path, carried: str, tiny_spec: ModelSpec) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: it makes TorchScript files")
    path = tmp_path / "model.ts"
    save_identity(torch, path, {f"{METADATA}.json": carried})
    model = open_model(path)
    assert model.spec == tiny_spec
    assert model.artifact("torchscript", "fp16") == ("model.ts", sha256_of(path))


def test_a_torchscript_file_without_our_metadata(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: it makes TorchScript files")
    path = tmp_path / "model.ts"
    save_identity(torch, path, {})
    with pytest.raises(BundleError, match="carries no tfx spec"):
        open_model(path)


def test_a_zip_that_is_no_torchscript(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="carries no tfx spec"):
        open_model(save_zip(tmp_path / "model.ts", {"readme.txt": "hello", "tfx.json": "{}"}))


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_damage_inside_the_zip_is_refused(tmp_path: Path, carried: str, compression: int) -> None:
    path = save_zip(tmp_path / "model.ts", {f"model/extra/{METADATA}.json": carried}, compression)
    sound = path.read_bytes()
    open_model(path)
    for at in range(60, 160, 5):
        path.write_bytes(sound[:at] + bytes([sound[at] ^ 0x55]) + sound[at + 1 :])
        with pytest.raises(BundleError, match=r"model\.ts"):
            open_model(path)


@pytest.mark.parametrize("ending", ["onnx", "ts"])
@pytest.mark.parametrize(
    "content", [b"", b"\x00", b"\x80" * 40, b"RIFF....WAVEfmt ", b"PK\x03\x04 no zip", b"\xff" * 9, b"<html>"]
)
def test_garbage_is_refused(tmp_path: Path, ending: str, content: bytes) -> None:
    path = tmp_path / f"model.{ending}"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=path.name):
        open_model(path)


@pytest.mark.parametrize("ending", ["onnx", "ts"])
def test_a_truncated_file_is_refused_wherever_it_ends(
    save_onnx: SaveOnnx, tmp_path: Path, carried: str, ending: str
) -> None:
    path = tmp_path / "model.ts"
    if ending == "onnx":
        path = save_onnx({METADATA: carried})
    else:
        save_zip(path, {f"model/extra/{METADATA}.json": carried})
    sound = path.read_bytes()
    for length in range(0, len(sound), 7):
        path.write_bytes(sound[:length])
        with pytest.raises(BundleError, match=path.name):
            open_model(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(content=st.binary(max_size=60), ending=st.sampled_from(["onnx", "ts"]))
@example(content=b"\x72\x02\x0a\x00", ending="onnx")  # metadata with an empty pair
@example(content=b"\x72\x07\x0a\x03tfx\x12\x7f", ending="onnx")  # whose value runs past its end
def test_any_bytes_are_refused_in_our_words(tmp_path: Path, content: bytes, ending: str) -> None:
    path = tmp_path / f"model.{ending}"
    path.write_bytes(content)
    with pytest.raises(TfxError, match=path.name):
        open_model(path)


def test_what_is_embedded_reads_back(tiny_spec: ModelSpec) -> None:
    text = json.loads(embed(tiny_spec, "fp16", "abc"))
    assert ModelSpec.from_dict(text["spec"]) == tiny_spec
    assert (text["precision"], text["source"]) == ("fp16", "abc")
