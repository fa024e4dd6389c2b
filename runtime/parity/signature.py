"""Signed certificates: whoever has the public key can see that nobody changed what was measured.

Ed25519 (RFC 8032) by the library ``cryptography``, over the bytes of ``parity.json``. Keys are PEM files, as
``openssl genpkey -algorithm ed25519`` and ``openssl pkey -pubout`` write them.
"""

from __future__ import annotations

import base64
import binascii
from importlib import import_module
from pathlib import Path
from typing import Any

from tfswa.runtime.errors import BackendUnavailable, BundleError, UsageError, reason
from tfswa.runtime.model.opening import Model
from tfswa.runtime.parity.certificate import EVIDENCE
from tfswa.runtime.parity.evidence import read_evidence

SIGNATURE = f"{EVIDENCE}.sig"
KIND = "signature"


class Signer:
    """A private key.

    Args:
        key: PEM file, not encrypted.

    Raises:
        UsageError: no such file, or no Ed25519 key.
        BackendUnavailable: the library is missing.
    """

    def __init__(self, key: Path):
        self._key = _load(key, "load_pem_private_key", "private", password=None)

    def sign(self, model: Model) -> Path:
        """Sign a bundle's certificates; the signature lies beside them.

        Raises:
            UsageError: the bundle cannot be written.
        """
        assert model.bundle is not None
        text = base64.b64encode(self._key.sign(model.bundle.file(EVIDENCE).read_bytes())) + b"\n"
        return model.bundle.add(SIGNATURE, text, kind=KIND)


def verify(model: Model, key: Path) -> tuple[int, int]:
    """See that a bundle's certificates are signed by the owner of a public key.

    Args:
        model: a bundle's model.
        key: PEM file.

    Returns:
        How many certificates there are, and how many of them are of files that the bundle holds now.

    Raises:
        UsageError: an exported file, no such key file, or no Ed25519 key.
        BackendUnavailable: the library is missing.
        BundleError: there is no signature, or it is not of these certificates by this key.
    """
    public = _load(key, "load_pem_public_key", "public")
    bundle = model.bundle
    if bundle is None:
        raise UsageError(f"{model.name} is an exported file, certificates are in bundles: name that")
    missing = [name for name in (EVIDENCE, SIGNATURE) if name not in bundle.files]
    if missing:
        raise BundleError(f"{model.name} holds no {missing[0]}: measure and sign, `tfx parity --sign KEY`")
    try:
        signature = base64.b64decode(bundle.file(SIGNATURE).read_bytes(), validate=False)
        public.verify(signature, bundle.file(EVIDENCE).read_bytes())
    except (import_module("cryptography.exceptions").InvalidSignature, binascii.Error) as error:
        raise BundleError(
            f"{model.name}: {SIGNATURE} is not the signature of {EVIDENCE} by the owner of {key}: it was "
            "changed, measured again, or signed by another"
        ) from error
    certificates = read_evidence(model)
    hashes = {entry.sha256 for entry in bundle.files.values()}
    held = [c for c in certificates if c.artifact_sha256 in hashes and c.source == bundle.digest]
    return len(certificates), len(held)


def _load(path: Path, function: str, what: str, **options: Any) -> Any:
    """A key from a PEM file."""
    try:
        serialization = import_module("cryptography.hazmat.primitives.serialization")
        kinds = import_module("cryptography.hazmat.primitives.asymmetric.ed25519")
    except ImportError as error:
        raise BackendUnavailable(
            f"signatures need cryptography ({error}): pip install 'tfswa[sign]'"
        ) from error
    try:
        key = getattr(serialization, function)(path.read_bytes(), **options)
    except Exception as error:  # what a file that is no key makes it raise has no common base
        raise UsageError(f"{path} is no {what} key ({reason(error)}): give a PEM file of Ed25519") from error
    if not isinstance(key, getattr(kinds, f"Ed25519{what.title()}Key")):
        raise UsageError(f"{path} holds a {type(key).__name__}, an Ed25519 {what} key is wanted")
    return key
