"""Whole or not at all: what a bundle and its copy hold after an export, and after one that failed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: export needs it")

from tfswa.export import artifact  # noqa: E402
from tfswa.export.artifact import bundle_copy, finite_or_none, produce  # noqa: E402
from tfswa.runtime.errors import BundleError, ExportError, OutputExists, UsageError  # noqa: E402
from tfswa.runtime.model.bundle import WEIGHTS, Bundle  # noqa: E402
from tfswa.runtime.model.opening import BundleModel, open_model  # noqa: E402

Contents = Callable[[Path], dict[str, bytes]]
Seal = Callable[[BundleModel], BundleModel]


@pytest.fixture
def convert(exported_bundle: Path) -> Any:
    """Stands in for an exporter: gives the graph that was exported before."""

    def write(network: Any, path: Path) -> Mapping[str, Any]:
        shutil.copyfile(exported_bundle / path.name, path)
        return {"by": "a test"}

    return write


def fail(network: Any, path: Path) -> Mapping[str, Any]:
    path.write_bytes(b"half")
    raise ExportError("no")


def touch(path: Path) -> None:
    path.write_bytes(b"engine")


def test_a_failed_export_leaves_the_bundle_as_it_was(plain: BundleModel, contents: Contents) -> None:
    before = contents(plain.bundle.path.parent)
    with pytest.raises(ExportError):
        produce(plain, "model.onnx", "onnx", fail)
    assert contents(plain.bundle.path.parent) == before


def test_a_graph_of_other_weights_is_not_written(
    plain: BundleModel, convert: Any, contents: Contents, tmp_path: Path
) -> None:
    from tfswa.train.backend import new_bundle

    spec = plain.spec
    other = tmp_path / "other" / "other.tfx"
    new_bundle("tfswa_lite", other, seed=6, hyper=spec.hyper, stft=spec.stft, chunk=spec.chunk)
    before = contents(other.parent)
    says = r"^onnx graph differs from eager on generated music: stem vocals SNR .* not written$"
    with pytest.raises(ExportError, match=says):
        produce(open_model(other), "model.onnx", "onnx", convert)
    assert contents(other.parent) == before


def test_a_failed_copy_leaves_nothing(plain: BundleModel, contents: Contents, tmp_path: Path) -> None:
    before = contents(tmp_path)
    with pytest.raises(ExportError):
        produce(plain, "model.onnx", "onnx", fail, output=tmp_path / "new.tfx")
    assert contents(tmp_path) == before
    assert not (tmp_path / "new.tfx").exists()


def test_a_failed_copy_over_a_bundle_leaves_the_old_one(
    plain: BundleModel, exported: BundleModel, contents: Contents
) -> None:
    before = contents(exported.bundle.path)
    with pytest.raises(ExportError):
        produce(plain, "model.onnx", "onnx", fail, output=exported.bundle.path, force=True)
    assert contents(exported.bundle.path) == before


def test_the_copy_is_the_same_model_and_the_source_is_untouched(
    plain: BundleModel, convert: Any, contents: Contents, tmp_path: Path
) -> None:
    before = contents(plain.bundle.path)
    made = produce(plain, "model.onnx", "onnx", convert, output=tmp_path / "new.tfx")
    assert contents(plain.bundle.path) == before
    copy = Bundle.open(tmp_path / "new.tfx")
    assert (made.bundle, made.file) == (copy.path, copy.file("model.onnx"))
    assert copy.digest == plain.bundle.digest
    assert copy.provenance == plain.bundle.provenance
    assert copy.file(WEIGHTS).read_bytes() == plain.bundle.file(WEIGHTS).read_bytes()
    assert copy.files[WEIGHTS].precision == "fp16"
    assert copy.files["model.onnx"].precision == "fp32"
    assert copy.files["model.onnx"].details["by"] == "a test"
    assert sorted(p.name for p in copy.path.iterdir()) == ["manifest.json", "model.onnx", WEIGHTS]


def test_a_bundle_may_be_copied_onto_itself(exported: BundleModel, convert: Any) -> None:
    path = exported.bundle.path
    produce(exported, "model.onnx", "onnx", convert, output=path, force=True)
    assert set(Bundle.open(path).files) == {WEIGHTS, "model.onnx", "model.ts"}


def test_the_copy_takes_along_what_is_still_valid(exported: BundleModel, tmp_path: Path) -> None:
    bundle = exported.bundle
    onnx = bundle.files["model.onnx"].sha256
    for name, source in (("engines/good.engine", onnx), ("engines/stale.engine", "0" * 64)):
        bundle.add(name, touch, kind="engine", details={"onnx_sha256": source})
    with bundle_copy(bundle, tmp_path / "one.tfx", without="model.ts", force=False) as copy:
        pass
    one = Bundle.open(tmp_path / "one.tfx")
    assert set(one.files) == {WEIGHTS, "model.onnx", "engines/good.engine"}
    assert one.files["model.onnx"] == bundle.files["model.onnx"]
    with bundle_copy(bundle, tmp_path / "two.tfx", without="model.onnx", force=False) as copy:
        assert set(copy.files) == {WEIGHTS, "model.ts"}


def test_a_damaged_artifact_is_not_copied(exported: BundleModel, tmp_path: Path) -> None:
    (exported.bundle.path / "model.ts").write_bytes(b"other")
    copying = bundle_copy(exported.bundle, tmp_path / "new.tfx", without="model.onnx", force=False)
    with pytest.raises(BundleError, match=r"model\.ts is damaged"), copying:
        pass
    assert not (tmp_path / "new.tfx").exists()


def test_what_is_there_is_refused_before_any_work(
    exported: BundleModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(artifact, "source_network", lambda model: pytest.fail("worked"))
    with pytest.raises(OutputExists, match=r"holds model\.onnx already: replace it with --force"):
        produce(exported, "model.onnx", "onnx", fail)
    (tmp_path / "folder").mkdir()
    for force in (False, True):
        with pytest.raises(OutputExists):
            produce(exported, "model.onnx", "onnx", fail, output=tmp_path / "folder", force=force)


def test_force_replaces_the_artifact(exported: BundleModel, convert: Any) -> None:
    produce(exported, "model.onnx", "onnx", convert, force=True)
    assert Bundle.open(exported.bundle.path).files["model.onnx"].details["by"] == "a test"


def test_an_addition_to_a_sealed_bundle_goes_to_the_cache(
    plain: BundleModel, seal: Seal, convert: Any, contents: Contents, private_cache: Path
) -> None:
    sealed = seal(plain)
    before = contents(sealed.bundle.path)
    made = produce(sealed, "model.onnx", "onnx", convert)
    assert contents(sealed.bundle.path) == before
    assert made.file.is_relative_to(private_cache)
    assert made.bundle == made.file.parent
    assert open_model(sealed.bundle.path).file("model.onnx") == made.file


def test_what_a_sealed_bundle_has_built_in_is_not_shadowed(exported: BundleModel, seal: Seal) -> None:
    with pytest.raises(UsageError, match=r"is sealed and holds model\.onnx already.*tfx export -o"):
        produce(seal(exported), "model.onnx", "onnx", fail, force=True)


def test_a_copy_of_a_sealed_bundle_is_open_and_holds_the_additions(
    plain: BundleModel, seal: Seal, convert: Any, tmp_path: Path
) -> None:
    sealed = seal(plain)
    produce(sealed, "model.onnx", "onnx", convert)
    produce(sealed, "model.ts", "torchscript", convert, output=tmp_path / "new.tfx")
    copy = Bundle.open(tmp_path / "new.tfx")
    assert not copy.sealed
    assert copy.file("model.onnx").parent == copy.path
    assert set(copy.files) == {WEIGHTS, "model.onnx", "model.ts"}


def test_an_exported_file_has_no_bundle_to_export(exported: BundleModel) -> None:
    file = open_model(exported.bundle.path / "model.onnx")
    with pytest.raises(UsageError, match="is an exported file, `tfx export` needs a bundle"):
        produce(file, "model.onnx", "onnx", fail)


def test_an_output_that_cannot_be_written_is_one_line(plain: BundleModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write"):
        produce(plain, "model.onnx", "onnx", fail, output=tmp_path / "file" / "new.tfx")


def test_infinity_is_null_in_json() -> None:
    assert json.dumps(finite_or_none({"a": float("inf"), "b": 141.2345}), allow_nan=False) == (
        '{"a": null, "b": 141.23}'
    )


class TestAFileAlone:
    def test_it_is_the_artifact_and_the_bundle_is_as_it_was(
        self, plain: BundleModel, convert: Any, contents: Contents, tmp_path: Path
    ) -> None:
        before = contents(plain.bundle.path)
        out = tmp_path / "new folder" / "mine.onnx"
        made = produce(plain, "model.onnx", "onnx", convert, output=out)
        assert made.file == out
        assert made.bytes == out.stat().st_size
        assert open_model(out).spec == plain.spec  # it carries the spec
        assert contents(plain.bundle.path) == before
        assert [path.name for path in out.parent.iterdir()] == ["mine.onnx"]
        with pytest.raises(OutputExists, match="--force"):
            produce(plain, "model.onnx", "onnx", convert, output=out)
        produce(plain, "model.onnx", "onnx", convert, output=out, force=True)

    def test_a_link_that_the_user_named_is_followed(
        self, plain: BundleModel, convert: Any, tmp_path: Path
    ) -> None:
        (tmp_path / "behind.onnx").write_bytes(b"old")
        link = tmp_path / "latest.onnx"
        link.symlink_to("behind.onnx")
        produce(plain, "model.onnx", "onnx", convert, output=link, force=True)
        assert link.is_symlink()
        assert open_model(tmp_path / "behind.onnx").spec == plain.spec

    def test_the_ending_of_another_kind_is_refused_before_the_work(
        self, plain: BundleModel, tmp_path: Path
    ) -> None:
        with pytest.raises(UsageError, match=r"ends in .ts, but --format onnx makes .onnx"):
            produce(plain, "model.onnx", "onnx", fail, output=tmp_path / "mine.ts")
