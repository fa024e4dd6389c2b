"""Signed certificates: whoever has the public key can see that nobody changed what was measured.

Ed25519 (RFC 8032) by the library ``cryptography``, over the bytes of ``parity.json``. Keys are PEM files, as
``openssl genpkey -algorithm ed25519`` and ``openssl pkey -pubout`` write them.
"""

from __future__ import annotations

import base64
from pathlib import Path

from tfswa.runtime.errors import UsageError
from tfswa.runtime.model.keys import EVIDENCE, SIGNATURE, load_key, signed_evidence
from tfswa.runtime.model.opening import Model
from tfswa.runtime.parity.evidence import read_evidence

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
        self._key = load_key(key, "private")

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
    bundle = model.bundle
    if bundle is None:
        raise UsageError(f"{model.name} is an exported file, certificates are in bundles: name that")
    signed_evidence(bundle, key)
    certificates = read_evidence(model)
    hashes = {entry.sha256 for entry in bundle.files.values()}
    held = [c for c in certificates if c.artifact_sha256 in hashes and c.source == bundle.digest]
    return len(certificates), len(held)
