"""The digest at the end of an exported file: the SHA-256 of all that stands before it, in hexadecimal.

    model.onnx       ... | metadata_props "tfx.sha256" | 64 letters      the last field of the message
    model.ts, .pt2   ... | the archive's comment       | 64 letters

So a single file that was damaged on its way is refused, wherever the damage is. Against somebody who changes
a file and the digest with it, it proves nothing: signed certificates do (``keys.py``).
"""

from __future__ import annotations

import hashlib
import logging
import os
import zipfile
from pathlib import Path

from tfswa.runtime.errors import BundleError

logger = logging.getLogger(__name__)

KEY = "tfx.sha256"  # of metadata_props in ONNX
BLANK = "0" * 64
_BLOCK = 1 << 20


def close_message(message: bytes) -> bytes:
    """Put the digest into a serialized ONNX model whose last field is ``KEY`` with the value ``BLANK``."""
    assert message.endswith(BLANK.encode()), "nothing may follow the digest"
    content = message[: -len(BLANK)]
    return content + hashlib.sha256(content).hexdigest().encode()


def close_archive(path: Path) -> None:
    """Put the digest into the comment of an archive of torch."""
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = f"{KEY} {BLANK}".encode()
    content, _, _ = _hashed(path)
    with path.open("r+b") as stream:
        stream.seek(-len(BLANK), os.SEEK_END)
        stream.write(content.encode())


def check_digest(path: Path, *, sealed: bool) -> str:
    """Hash an exported file, and compare with the digest that it carries.

    Args:
        path: the file.
        sealed: whether it carries one; files of older versions do not, which is noted in the log.

    Returns:
        The SHA-256 of the whole file.

    Raises:
        BundleError: it is not what was exported.
    """
    try:
        content, carried, whole = _hashed(path)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from error
    if not sealed:
        logger.warning("%s carries no digest of itself: it is not checked for damage; export it again", path)
    elif content.encode() != carried:
        raise BundleError(
            f"{path} is damaged, or was changed after its export: its content has SHA-256 {content[:12]}, it "
            f"carries {carried[:12].decode('ascii', 'replace')!r}: copy or export it again"
        )
    return whole


def _hashed(path: Path) -> tuple[str, bytes, str]:
    """SHA-256 of all but the last 64 bytes, these bytes, and SHA-256 of all."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        left = max(0, os.fstat(stream.fileno()).st_size - len(BLANK))
        while left and (block := stream.read(min(left, _BLOCK))):
            digest.update(block)
            left -= len(block)
        content, last = digest.hexdigest(), stream.read()
        digest.update(last)
    return content, last, digest.hexdigest()
