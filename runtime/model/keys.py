"""Ed25519 keys (RFC 8032) in PEM files, and what of a bundle they have signed: its ``parity.json``."""

from __future__ import annotations

import base64
import binascii
from importlib import import_module
from pathlib import Path
from typing import Any

from tfswa.runtime.documents import parse_json, read_document
from tfswa.runtime.errors import BackendUnavailable, BundleError, UsageError, reason
from tfswa.runtime.model.bundle import Bundle
from tfswa.runtime.model.spec import DECODE, ENCODE

EVIDENCE = "parity.json"
SIGNATURE = f"{EVIDENCE}.sig"
TRANSFORMS = (ENCODE, DECODE)
KEY_BYTES = 1 << 16  # of a PEM file


def load_key(path: Path, what: str) -> Any:
    """A key from a PEM file that is not encrypted.

    Args:
        path: the file, as ``openssl genpkey -algorithm ed25519`` or ``openssl pkey -pubout`` writes it.
        what: ``private`` or ``public``.

    Raises:
        UsageError: no such file, or no Ed25519 key.
        BackendUnavailable: the library ``cryptography`` is missing.
    """
    try:
        serialization = import_module("cryptography.hazmat.primitives.serialization")
        kinds = import_module("cryptography.hazmat.primitives.asymmetric.ed25519")
    except ImportError as error:
        raise BackendUnavailable(
            f"signatures need cryptography ({error}): pip install 'tfswa[sign]'"
        ) from error
    options: dict[str, Any] = {"password": None} if what == "private" else {}
    try:
        key = getattr(serialization, f"load_pem_{what}_key")(read_document(path, KEY_BYTES), **options)
    except Exception as error:  # what a file that is no key makes it raise has no common base
        raise UsageError(f"{path} is no {what} key ({reason(error)}): give a PEM file of Ed25519") from error
    if not isinstance(key, getattr(kinds, f"Ed25519{what.title()}Key")):
        raise UsageError(f"{path} holds a {type(key).__name__}, an Ed25519 {what} key is wanted")
    return key


def signed_evidence(bundle: Bundle, key: Path) -> bytes:
    """The bytes of a bundle's ``parity.json``, which the owner of a public key has signed.

    Raises:
        UsageError: no such key file, or no Ed25519 key.
        BackendUnavailable: the library is missing.
        BundleError: there is no signature, or it is not of these bytes by this key.
    """
    public = load_key(key, "public")
    missing = [name for name in (EVIDENCE, SIGNATURE) if name not in bundle.files]
    if missing:
        raise BundleError(f"{bundle.path} holds no {missing[0]}: measure with `tfx parity`, then `tfx sign`")
    content = bundle.file(EVIDENCE).read_bytes()
    try:
        public.verify(base64.b64decode(bundle.file(SIGNATURE).read_bytes(), validate=False), content)
    except (import_module("cryptography.exceptions").InvalidSignature, binascii.Error) as error:
        raise BundleError(
            f"{bundle.path}: {SIGNATURE} is not the signature of {EVIDENCE} by the owner of {key}: it was "
            "changed, measured again, or signed by another"
        ) from error
    return content


def signed_artifacts(bundle: Bundle, key: Path) -> set[str]:
    """SHA-256 of the files of this model whose certificates the owner of a public key has signed.

    The transforms that ran along are named among the versions, engines by their whole hash.

    Raises:
        UsageError, BackendUnavailable, BundleError: see ``signed_evidence``.
    """
    try:
        found = parse_json(signed_evidence(bundle, key))["certificates"]
        own = [one for one in found if one["source"] == bundle.digest]
        along = {str(one["versions"][name]) for one in own for name in TRANSFORMS if name in one["versions"]}
        return {str(one["artifact_sha256"]) for one in own} | along
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{bundle.path}: {EVIDENCE} is damaged ({reason(error)})") from error
