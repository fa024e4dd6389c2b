"""Which model files are machine code, and whether such a file may be run.

Weights (safetensors) and ONNX graphs are data: what reads them can be made to compute something else, and no
more. TorchScript can read and write files, a package of AOTInductor and an engine are libraries: whoever made
one can do what the user can who runs it. One is run only if

- this machine made it: every export notes its hash (``files/seal.py``); or
- the user said ``--trust``, which notes the hash likewise; or
- the bundle's certificates name its hash, and are signed by a key in ``tfswa/keys/`` of the user's
  configuration (``parity/signature.py`` writes signatures).

The check is by hash and comes before any library opens the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tfswa.runtime.errors import BackendUnavailable, BundleError, UntrustedError, UsageError
from tfswa.runtime.files import seal
from tfswa.runtime.machine import user_config

if TYPE_CHECKING:
    from tfswa.runtime.model.bundle import Bundle

CODE: Mapping[str, str] = {  # by kind of file
    "torchscript": "a program that can read and write files",
    "aotinductor": "machine code",
    "engine": "machine code",
    "transform engine": "machine code",
}
MADE, TOLD = "made", "trusted"  # kinds of what is vouched for


def made_here(sha256: str) -> None:
    """Note that tfx has just made a file of machine code on this machine."""
    seal.vouch(MADE, sha256)


def trust(sha256: str) -> None:
    """Note that the user trusts a file, from now on."""
    seal.vouch(TOLD, sha256)


def who_vouches(kind: str, sha256: str, bundle: Bundle | None = None) -> str | None:
    """Why a file may be run, in a few words; None where it may not."""
    if kind not in CODE:
        return "data"
    if seal.is_vouched(MADE, sha256):
        return "made here"
    if seal.is_vouched(TOLD, sha256):
        return "--trust was given"
    signer = None if bundle is None else _signer(bundle, sha256)
    return None if signer is None else f"signed by {signer}"


def check_trusted(
    kind: str, name: str, sha256: str, bundle: Bundle | None = None, *, instead: str = "--backend ort"
) -> None:
    """See that a file may be run, before anything opens it.

    Args:
        kind: of the file, as in the manifest.
        name: of the file, for the message.
        sha256: of its content as it is now.
        bundle: that holds it.
        instead: what can be asked for that needs no trust.

    Raises:
        UntrustedError: it may not.
    """
    if who_vouches(kind, sha256, bundle) is None:
        raise UntrustedError(
            f"{name} is {CODE[kind]} that this machine did not make and no known key signed "
            f"(SHA-256 {sha256[:12]}): --trust runs it, if you know who made it; {instead} needs none"
        )


def key_folder() -> Path:
    """Where public keys lie whose signatures are trusted."""
    return user_config() / "keys"


def _signer(bundle: Bundle, sha256: str) -> str | None:
    """Name of the known key that signed certificates of a file, if one did."""
    from tfswa.runtime.model.keys import signed_artifacts

    for key in _known_keys():
        try:
            if sha256 in signed_artifacts(bundle, key):
                return key.name
        except (BundleError, UsageError, BackendUnavailable):
            continue
    return None


def _known_keys() -> Iterator[Path]:
    yield from sorted(path for path in key_folder().glob("*") if path.suffix in (".pem", ".pub"))
