"""Machine code: refused before any library opens it, unless somebody vouches for it."""

from __future__ import annotations

import json
import pickle
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import Tfx

from tfswa.runtime.backends import BackendOptions, open_session
from tfswa.runtime.errors import BundleError, UntrustedError, UsageError
from tfswa.runtime.files import seal
from tfswa.runtime.model import trust
from tfswa.runtime.model.bundle import Bundle
from tfswa.runtime.model.keys import EVIDENCE, SIGNATURE
from tfswa.runtime.model.opening import METADATA, BundleModel, embed, open_model

CPU = BackendOptions()


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Be another machine, whose user vouches for nothing yet."""

    def move() -> None:
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other state"))
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "other config"))
        monkeypatch.setattr(seal, "_here", set())

    return move


@pytest.fixture
def foreign(exported: BundleModel, elsewhere: Callable[[], None]) -> BundleModel:
    """A bundle with model.ts and model.onnx, made on another machine."""
    elsewhere()
    return exported


def test_what_was_exported_here_runs_and_so_does_a_lone_copy_of_it(
    exported: BundleModel, tmp_path: Path
) -> None:
    open_session("torchscript", exported, CPU).close()
    shutil.copyfile(exported.bundle.path / "model.ts", tmp_path / "copy of it.ts")
    open_session("torchscript", open_model(tmp_path / "copy of it.ts"), CPU).close()


def test_torchscript_from_elsewhere_is_refused_before_torch_opens_it(
    foreign: BundleModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import torch

    shutil.copyfile(foreign.bundle.path / "model.ts", tmp_path / "alone.ts")
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("it was opened"))
    for model in (foreign, open_model(tmp_path / "alone.ts")):
        with pytest.raises(
            UntrustedError, match=r"\.ts is a program .* did not make .*: --trust runs it"
        ) as error:
            open_session("torchscript", model, CPU)
        assert "\n" not in str(error.value)
        assert error.value.exit_code == 4


def test_data_needs_no_trust(foreign: BundleModel) -> None:
    open_session("ort", foreign, CPU).close()
    open_session("torch", foreign, CPU).close()
    assert open_session("auto", foreign, CPU).artifact[0] == "model.onnx"
    assert trust.who_vouches("onnx", "ab" * 32) == "data"


def test_trust_is_by_hash_and_remembered(foreign: BundleModel, monkeypatch: pytest.MonkeyPatch) -> None:
    open_model(foreign.name, trusted=True)
    monkeypatch.setattr(seal, "_here", set())  # as in a new process
    open_session("torchscript", open_model(foreign.name), CPU).close()
    path = foreign.bundle.path / "model.ts"
    changed = path.read_bytes() + b" "
    foreign.bundle.add("model.ts", changed, kind="torchscript", precision="fp32")
    with pytest.raises(UntrustedError, match="--trust"):
        open_session("torchscript", open_model(foreign.name), CPU)


def test_every_command_that_runs_a_model_has_the_flag(
    foreign: BundleModel, tfx: Tfx, song_root: Path, tmp_path: Path
) -> None:
    song, model = song_root / "A" / "vocals.wav", foreign.name
    asked = ("separate", song, "-m", model, "-o", tmp_path / "out", "--backend", "torchscript")
    refused = tfx(*asked)
    assert refused.code == 4
    assert "--trust runs it" in refused.err
    assert not (tmp_path / "out").exists()
    shown = tfx("inspect", model)
    assert "NOT trusted" in shown.out
    refused = tfx("parity", model, "--backend", "torchscript", "--quick", "--audio", song)
    assert (refused.code, "--trust runs it" in refused.err) == (4, True)
    assert tfx(*asked, "--trust").code == 0
    assert "--trust was given" in tfx("inspect", model).out
    for command in ("bench", "evaluate", "inspect", "parity", "separate"):
        assert "--trust" in tfx(command, "--help").out


def test_parity_of_all_that_is_here_leaves_out_what_is_not_trusted(
    foreign: BundleModel, tfx: Tfx, song_root: Path
) -> None:
    song = song_root / "A" / "vocals.wav"
    done = tfx("parity", foreign.name, "--quick", "--json", "--audio", song)
    assert "--trust" in json.loads(done.out)["missing"]["torchscript fp32"]


def test_a_signature_by_a_known_key_vouches_for_what_was_certified(
    exported: BundleModel, elsewhere: Callable[[], None], tmp_path: Path
) -> None:
    pytest.importorskip("cryptography", reason="cryptography is not installed")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    bundle = exported.bundle

    def sign(source: str, sha256: str, **versions: str) -> None:
        import base64

        certificates = [{"artifact_sha256": sha256, "source": source, "versions": versions}]
        text = json.dumps({"schema": 2, "certificates": certificates}).encode()
        bundle.add(EVIDENCE, text, kind="evidence")
        bundle.add(SIGNATURE, base64.b64encode(key.sign(text)), kind="signature")

    elsewhere()
    right = bundle.files["model.ts"].sha256
    sign(bundle.digest, right)
    with pytest.raises(UntrustedError):  # the key is not known
        open_model(bundle.path).file("model.ts")
    trust.key_folder().mkdir(parents=True)
    (trust.key_folder() / "alice.pub").write_bytes(public)
    (trust.key_folder() / "broken.pub").write_text("no key")
    open_model(bundle.path).file("model.ts")
    assert trust.who_vouches("torchscript", right, bundle) == "signed by alice.pub"
    for source, sha256 in (("0" * 64, right), (bundle.digest, "0" * 64)):
        sign(source, sha256)
        with pytest.raises(UntrustedError):
            open_model(bundle.path).file("model.ts")
    sign(bundle.digest, "0" * 64, **{"decode.onnx": right})  # an engine that ran along with what was measured
    open_model(bundle.path).file("model.ts")
    sign(bundle.digest, "0" * 64, torch=right)
    with pytest.raises(UntrustedError):
        open_model(bundle.path).file("model.ts")


def test_what_an_archive_may_not_hold_is_refused_though_it_is_trusted(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    carried = embed(tiny_bundle.spec, "fp32", "")

    def saved(name: str, members: dict[str, Any], compression: int = zipfile.ZIP_STORED) -> Path:
        with zipfile.ZipFile(tmp_path / name, "w", compression) as archive:
            archive.writestr(f"model/extra/{METADATA}.json", carried)
            for member, content in members.items():
                archive.writestr(member, content)
        return tmp_path / name

    bomb = bytes(200 << 20)
    path = saved("bomb.ts", {"model/constants/0": bomb}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 20
    with pytest.raises(BundleError, match=r"declares 2 members of 2\d+ bytes, a file of \d+ bytes may have"):
        open_model(path, trusted=True)
    for name in ("../x", "/x", "model/../../x", "a\\b"):
        with pytest.raises(BundleError, match="leaves its folder"):
            open_model(saved("path.ts", {name: b""}), trusted=True)
    pickled = saved("model.pt2", {"model/models/model.json": b"{}"})
    with pytest.raises(BundleError, match=r"holds 'models/model.json', which an export of tfx does not"):
        open_model(pickled, trusted=True).file("model.pt2")


class Payload:
    """Unpickled, it writes a file."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.place, "ran")


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize("member", ["data.pkl", "payload.pkl", "data/weights.pt", "extra/payload.pkl"])
@pytest.mark.parametrize("kind", [".pt2", ".ts"])
def test_a_pickle_in_an_archive_is_never_read(
    exported: BundleModel, tfx: Tfx, song_root: Path, tmp_path: Path, kind: str, member: str, trusted: bool
) -> None:
    ran, path = tmp_path / "ran", tmp_path / f"alone{kind}"
    payload = pickle.dumps(Payload(ran))
    if kind == ".ts":
        shutil.copyfile(exported.bundle.path / "model.ts", path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_STORED) as archive:
        folder = archive.namelist()[0].partition("/")[0] if archive.namelist() else "model"
        if kind == ".pt2":
            archive.writestr(f"{folder}/extra/{METADATA}.json", embed(exported.spec, "fp32", ""))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a name may be there already
            archive.writestr(f"{folder}/{member}", payload)
    backend = "torchscript" if kind == ".ts" else "aotinductor"
    song = song_root / "A" / "vocals.wav"
    flag = ("--trust",) if trusted else ()
    done = tfx("separate", song, "-m", path, "-o", tmp_path / "out", "--backend", backend, *flag)
    assert done.code != 0
    assert "Traceback" not in done.err
    assert not ran.exists()
    assert not (tmp_path / "out").exists()
    pickle.loads(payload)
    assert ran.exists()  # it would have


def test_engines_that_are_a_link_are_not_written_through(tiny_bundle: Bundle, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a.engine").write_bytes(b"precious")
    (tiny_bundle.path / "engines").symlink_to(outside)
    for name in ("engines/a.engine", "engines/b.engine", "engines/deep/er/c.engine"):
        with pytest.raises(UsageError, match="a link or a file is where a folder should be") as error:
            tiny_bundle.add(name, b"made", kind="engine")
        assert "\n" not in str(error.value)
        assert [path.name for path in outside.rglob("*")] == ["a.engine"]
        assert (outside / "a.engine").read_bytes() == b"precious"
        assert not list(tiny_bundle.path.glob(".*"))
    assert Bundle.open(tiny_bundle.path).weights()
