"""Signed certificates: whoever has the public key can see that nobody changed what was measured.

Ed25519 (RFC 8032) by the library ``cryptography``, over the bytes of ``parity.json``. Keys are PEM files, as
``openssl genpkey -algorithm ed25519`` and ``openssl pkey -pubout`` write them.
"""

from __future__ import annotations

import base64
from pathlib import Path

from tfswa.runtime.errors import BundleError, UsageError
from tfswa.runtime.model.bundle import Bundle
from tfswa.runtime.model.keys import EVIDENCE, SIGNATURE, load_key, signed_evidence
from tfswa.runtime.model.opening import Model
from tfswa.runtime.parity.certificate import Certificate
from tfswa.runtime.parity.evidence import is_held, is_measured_here, read_evidence

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

    def sign(self, model: Model, *, foreign: bool = False) -> list[Certificate]:
        """Sign a bundle's certificates as they are; the signature lies beside them.

        Args:
            model: a bundle's model.
            foreign: also sign certificates that were measured elsewhere.

        Returns:
            What was signed.

        Raises:
            UsageError: an exported file, a certificate that was not measured here, or the bundle cannot be
                written.
            BundleError: there are no certificates, or they are damaged.
        """
        bundle = _bundle(model)
        certificates = read_evidence(model)
        if not certificates:
            raise BundleError(f"{model.name} holds no certificates: measure first, `tfx parity {model.name}`")
        others = [found for found in certificates if not is_measured_here(found)]
        if others and not foreign:
            one = others[0]
            raise UsageError(
                f"{len(others)} of {len(certificates)} certificates of {model.name} were not measured here "
                f"({one.name} of {one.artifact}, {one.date[:10]}): measure them with `tfx parity`, or "
                "--trust signs them too"
            )
        text = base64.b64encode(self._key.sign(bundle.file(EVIDENCE).read_bytes())) + b"\n"
        bundle.add(SIGNATURE, text, kind=KIND)
        return certificates


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
        BundleError: there is no signature, it is not of these certificates by this key, or none of them is of
            a file that the bundle holds.
    """
    bundle = _bundle(model)
    signed_evidence(bundle, key)
    certificates = read_evidence(model)
    held = [found for found in certificates if is_held(found, bundle)]
    if not held:
        raise BundleError(
            f"{model.name}: the signature is right, and none of its {len(certificates)} certificates is of a "
            "file that the bundle holds now: measure and sign again"
        )
    return len(certificates), len(held)


def _bundle(model: Model) -> Bundle:
    if model.bundle is None:
        raise UsageError(f"{model.name} is an exported file, certificates are in bundles: name that")
    return model.bundle
