"""Signed certificates: what is accepted, and everything that is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parity_fakes import CHUNK, STEMS, STFT, certificate

pytest.importorskip("cryptography", reason="cryptography is not installed: it signs")

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from tfswa.runtime.errors import BackendUnavailable, BundleError, UsageError
from tfswa.runtime.files import seal
from tfswa.runtime.model import keys
from tfswa.runtime.model.bundle import Bundle
from tfswa.runtime.model.keys import EVIDENCE
from tfswa.runtime.model.opening import BundleModel
from tfswa.runtime.model.spec import ModelSpec
from tfswa.runtime.parity.evidence import store
from tfswa.runtime.parity.signature import SIGNATURE, Signer, verify


def pair(folder: Path, name: str, key: Any = None) -> tuple[Path, Path]:
    """Private and public key, as openssl writes them."""
    key = key or ed25519.Ed25519PrivateKey.generate()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    plain = serialization.NoEncryption()
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    private.write_bytes(key.private_bytes(pem, pkcs8, plain))
    public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture
def model(tmp_path: Path) -> BundleModel:
    """A bundle with two certificates, one of a file that it holds."""
    spec = ModelSpec(family="none", stems=STEMS, stft=STFT, chunk=CHUNK)
    bundle = Bundle.create(tmp_path / "tiny.tfx", spec, {"w": np.zeros(1, np.float32)})
    made = BundleModel("tiny", bundle)
    held = bundle.files["model.safetensors"].sha256
    mine = certificate(source=bundle.digest, artifact_sha256=held, artifact="model.safetensors")
    store(made, [mine, certificate(source=bundle.digest)])
    return made


def test_what_was_signed_is_verified(model: BundleModel, tmp_path: Path) -> None:
    private, public = pair(tmp_path, "key")
    assert len(Signer(private).sign(model)) == 2
    assert SIGNATURE in model.bundle.files
    assert verify(model, public) == (2, 1)
    Signer(private).sign(model)  # again, in place of the old one
    assert verify(model, public) == (2, 1)


def test_another_key_or_other_certificates_are_refused(model: BundleModel, tmp_path: Path) -> None:
    private, public = pair(tmp_path, "key")
    _, other = pair(tmp_path, "other")
    Signer(private).sign(model)
    with pytest.raises(
        BundleError, match=r"is not the signature of parity\.json by the owner of .*other\.pub"
    ):
        verify(model, other)
    store(model, [certificate(batch=2)])
    with pytest.raises(BundleError, match=r"key\.pub: it was changed, measured again, or signed by another"):
        verify(model, public)


@pytest.mark.parametrize("text", [b"", b"!!!", b"AAAA", b"A" * 88])
def test_a_damaged_signature_is_refused(model: BundleModel, tmp_path: Path, text: bytes) -> None:
    _, public = pair(tmp_path, "key")
    model.bundle.add(SIGNATURE, text, kind="signature")
    with pytest.raises(BundleError, match="is not the signature"):
        verify(model, public)


def test_without_signature_or_certificates(model: BundleModel, tmp_path: Path) -> None:
    _, public = pair(tmp_path, "key")
    with pytest.raises(BundleError, match=r"holds no parity\.json\.sig: measure with"):
        verify(model, public)
    bundle = Bundle.create(tmp_path / "bare.tfx", model.spec, {"w": np.zeros(1, np.float32)})
    with pytest.raises(BundleError, match=r"holds no parity\.json: measure with"):
        verify(BundleModel("bare", bundle), public)
    assert EVIDENCE not in bundle.files


def test_what_is_no_key_is_one_line(model: BundleModel, tmp_path: Path) -> None:
    private, public = pair(tmp_path, "key")
    curve, curve_public = pair(tmp_path, "curve", ec.generate_private_key(ec.SECP256R1()))
    (tmp_path / "text").write_text("no key")
    Signer(private).sign(model)
    for path in (tmp_path / "none", tmp_path / "text", public):
        with pytest.raises(UsageError, match="is no private key") as caught:
            Signer(path)
        assert "\n" not in str(caught.value)
    for path in (tmp_path / "none", tmp_path / "text", private):
        with pytest.raises(UsageError, match="is no public key"):
            verify(model, path)
    with pytest.raises(UsageError, match="an Ed25519 private key is wanted"):
        Signer(curve)
    with pytest.raises(UsageError, match="an Ed25519 public key is wanted"):
        verify(model, curve_public)
    file: Any = BundleModel("model.onnx", None)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="is an exported file"):
        verify(file, public)


def test_without_the_library_its_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(keys, "import_module", missing)
    with pytest.raises(BackendUnavailable, match=r"pip install 'tfswa\[sign\]'"):
        Signer(tmp_path / "key.pem")


def test_what_others_measured_is_not_signed_unsaid(
    model: BundleModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = pair(tmp_path, "key")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another machine"))
    monkeypatch.setattr(seal, "_here", set())
    with pytest.raises(UsageError, match=r"2 of 2 certificates of tiny were not measured here .*--trust"):
        Signer(private).sign(model)
    assert SIGNATURE not in model.bundle.files
    store(model, [certificate(source=model.bundle.digest)])
    with pytest.raises(UsageError, match="1 of 2 certificates of tiny were not measured here"):
        Signer(private).sign(model)
    assert len(Signer(private).sign(model, foreign=True)) == 2
    assert verify(model, public) == (2, 1)


def test_a_right_signature_of_files_that_are_gone_is_no_success(model: BundleModel, tmp_path: Path) -> None:
    private, public = pair(tmp_path, "key")
    bundle = Bundle.create(tmp_path / "other.tfx", model.spec, {"w": np.ones(1, np.float32)})
    other = BundleModel("other", bundle)
    store(other, [certificate(source=bundle.digest), certificate(source="0" * 64, batch=2)])
    Signer(private).sign(other)
    with pytest.raises(BundleError, match="none of its 2 certificates is of a file that the bundle holds"):
        verify(other, public)


def test_nothing_to_sign(model: BundleModel, tmp_path: Path) -> None:
    private, _ = pair(tmp_path, "key")
    bundle = Bundle.create(tmp_path / "bare.tfx", model.spec, {"w": np.zeros(1, np.float32)})
    with pytest.raises(BundleError, match="holds no certificates: measure first, `tfx parity bare`"):
        Signer(private).sign(BundleModel("bare", bundle))
