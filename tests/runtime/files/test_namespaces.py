"""Two containers that share a folder: process ids repeat, files must not mix.

``TFX_LONG=1`` runs 50 rounds.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tfswa.runtime.files.publish import sweep

ROUNDS = 50 if os.environ.get("TFX_LONG") else 4
WRITES = """
import os, sys
from pathlib import Path
os.getpid = lambda: 2
from tfswa.runtime.files.atomic import writing
from tfswa.runtime.files.staging import Staging
folder, tag = Path(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
staging = Staging({name: folder / name for name in ("vocals", "drums", "other")}, force=True, source=None)
staging.prepare(0)
streams = [partial.open("w") for partial in staging.partials]
with writing(folder / "list.json") as single:
    for _ in range(400):
        for stream in (*streams, single):
            stream.write(tag if stream is not single else tag.encode())
            stream.flush()
        if sys.argv[3] == "dies" and _ == 200:
            os._exit(9)
for stream in streams:
    stream.close()
staging.publish()
"""


def prefix() -> list[str]:
    """Of a command in process namespaces of its own; where that is not allowed, only ids are made equal."""
    found = shutil.which("unshare")
    for options in (["--pid", "--fork"], ["--user", "--map-root-user", "--pid", "--fork"]) if found else ():
        command = [str(found), *options]
        if subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0:
            return command
    return []


@pytest.mark.parametrize("end", ["lives", "dies"])
def test_equal_process_ids_mix_nothing(tmp_path: Path, end: str) -> None:
    start = [*prefix(), sys.executable, "-c", WRITES]
    for number in range(ROUNDS):
        folder = tmp_path / str(number)
        folder.mkdir()
        writers = [
            subprocess.Popen(
                [*start, str(folder), tag, end if tag == "b" else "lives"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / f"cache-{tag}")},  # two containers' own
            )
            for tag in "ab"
        ]
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.write("go\n")
            writer.stdin.flush()
        for writer in writers:
            writer.communicate(timeout=600)
        sweep(folder)
        contents = {path.name: path.read_text() for path in folder.iterdir()}
        assert sorted(contents) == ["drums", "list.json", "other", "vocals"]
        assert set(contents.values()) <= {"a" * 400, "b" * 400}
        assert contents["vocals"] == contents["drums"] == contents["other"]
        assert end == "lives" or contents["vocals"] == "a" * 400
