"""What every command does first: remove what killed ones left; and where it keeps what is temporary.

Swept is what no living process holds, of this user: temporary folders of ours, and whatever lies incomplete
where a process that died was writing, see ``register.py``.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tfswa.runtime.files import register
from tfswa.runtime.files.own_folders import usable
from tfswa.runtime.files.partial import sweep_temporary, temporary
from tfswa.runtime.files.publish import sweep
from tfswa.runtime.machine import user_cache

LONGEST_SOCKET_FOLDER = 60  # multiprocessing keeps sockets there, whose paths have at most 108 bytes

_swept: list[Path] = []


def sweep_all() -> list[Path]:
    """Remove what killed processes left, wherever that was; what was removed.

    Where one was killed between two renames, the set of files that it was publishing is completed.
    """
    found = []
    with suppress(OSError):  # no temporary folder that can be written
        found += sweep_temporary()
    for entries in register.left_behind():
        for folder in (place for made, place in entries if not made):
            found += sweep(folder)
        for folder in reversed([place for made, place in entries if made]):
            with suppress(OSError):  # something lives there
                folder.rmdir()
                found.append(folder)
    _swept[:] = found
    return found


def last_swept() -> list[Path]:
    """What this command removed when it began."""
    return list(_swept)


@contextmanager
def own_temporary() -> Iterator[None]:
    """Have libraries keep their temporary files, until the block ends, in a folder that a sweep finds.

    Python's multiprocessing (``pymp-*``) and others make folders that nobody removes after a kill.
    """
    names = ("TMPDIR", "TORCHINDUCTOR_CACHE_DIR")
    chosen, before = tempfile.tempdir, {name: os.environ.get(name) for name in names}
    with ExitStack() as stack:
        with suppress(OSError):  # there is no temporary folder that can be written
            folder = stack.enter_context(temporary("run"))
            if len(os.fsencode(folder)) <= LONGEST_SOCKET_FOLDER:
                # What torch compiled is to outlive the command.
                compiled = user_cache() / "inductor"
                if usable(compiled):
                    os.environ.setdefault(names[1], str(compiled))
                os.environ[names[0]] = tempfile.tempdir = str(folder)
        try:
            yield
        finally:
            tempfile.tempdir = chosen
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value
