"""torch's archives (``.ts``, ``.pt2``): zip files, looked at before torch opens them."""

from __future__ import annotations

import zipfile
from pathlib import Path, PurePosixPath

from tfswa.runtime.errors import BundleError
from tfswa.runtime.model.limits import ARCHIVE_BYTES, ARCHIVE_GROWTH, ENTRIES, METADATA_BYTES


def read_extra(path: Path, name: str) -> str | None:
    """The text of ``extra/NAME``; None where there is none.

    Raises:
        BundleError: it is no archive of torch, damaged, or declares more than it may.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            check_members(path, archive)
            for info in archive.infolist():
                if info.filename.endswith(f"/extra/{name}"):
                    if info.file_size > METADATA_BYTES:
                        raise ValueError(f"{info.file_size} bytes of {name}")
                    return archive.read(info).decode()
    except BundleError:
        raise
    except Exception as error:  # zipfile lets the errors of zlib, lzma, struct and others through
        raise BundleError(f"{path} is not a file of torch, or damaged: {error}") from error
    return None


def check_archive(path: Path, *allowed: str) -> None:
    """See that an archive is one that may be opened.

    Args:
        path: the archive.
        allowed: beginnings that names may have below the archive's own folder; none for any.

    Raises:
        BundleError: it is damaged, declares more than it may, or holds something else.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            check_members(path, archive)
            names = [PurePosixPath(info.filename).parts[1:] for info in archive.infolist()]
    except BundleError:
        raise
    except Exception as error:
        raise BundleError(f"{path} is not a file of torch, or damaged: {error}") from error
    for parts in names:
        name = "/".join(parts)
        if allowed and not name.startswith(allowed):
            raise BundleError(f"{path} holds {name!r}, which an export of tfx does not: not opened")


def check_members(path: Path, archive: zipfile.ZipFile) -> None:
    """See that an archive declares no more than it may, and names nothing twice or outside of its folder.

    Raises:
        BundleError: it does.
    """
    infos = archive.infolist()
    size = path.stat().st_size
    limit = ARCHIVE_BYTES + ARCHIVE_GROWTH * size
    declared = sum(info.file_size for info in infos)
    if len(infos) > ENTRIES or declared > limit:
        raise BundleError(
            f"{path} declares {len(infos)} members of {declared} bytes, a file of {size} bytes may have "
            f"{ENTRIES} of {limit}: not opened"
        )
    names = [info.filename for info in infos]
    for name in names:
        parts = PurePosixPath(name).parts
        if name.startswith("/") or ".." in parts or "\\" in name or not name.isprintable():
            raise BundleError(f"{path} holds a member named {name!r}, which leaves its folder: not opened")
    if len(set(names)) < len(names):
        raise BundleError(f"{path} holds two members of one name: not opened")
