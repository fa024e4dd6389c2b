"""What may differ on another machine: tests, as other processors, locales, users and places would run them.

scripts/test --elsewhere [PERSONA...] prints a line for each persona, and exits with 1 if a test failed. What
pytest printed is kept in out/elsewhere/. Ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOGS = ROOT / "out" / "elsewhere"
USER = "tfx-elsewhere"

NETWORKS = (  # run networks: what comes out depends on the kernels that a library has for a processor
    "tests/runtime/backends/test_running.py",
    "tests/runtime/backends/test_openvino.py",
    "tests/export/test_quantize.py::TestRunning",
    "tests/train/test_reference.py",
)
THREADS = ("tests/runtime/stream",)  # work in threads of their own
NUMBERS = (  # compare numbers that a processor's instructions or a BLAS might change
    *NETWORKS,
    *THREADS,
    "tests/runtime/test_metrics.py",
    "tests/runtime/evaluation/test_bsseval.py",
    "tests/runtime/evaluation/test_scores.py",
)
PLACES = (  # read and write names, texts and times
    "tests/runtime/files",
    "tests/runtime/songs",
    "tests/runtime/test_cli.py",
    "tests/runtime/test_escape.py",
    "tests/runtime/audio/test_writing.py",
    "tests/runtime/evaluation/test_evaluate.py",
)
WAITS = (  # start processes, send signals, wait
    "tests/runtime/evaluation/test_pool.py",
    "tests/runtime/commands/test_evaluate.py",
    *(f"tests/runtime/files/test_{name}.py" for name in ("kills", "publish", "meanwhile", "namespaces")),
    *(f"tests/runtime/files/test_{name}.py" for name in ("caches", "seal", "sweeping")),
)


@dataclass(frozen=True)
class Persona:
    """A machine that this one can pretend to be.

    Attributes:
        name: to choose it by.
        tests: what is run.
        environment: variables that make the difference.
        before: a command in front of pytest's.
        options: of pytest.
        slow: run tests marked as slow too.
        load: busy processes beside the tests.
    """

    name: str
    tests: Sequence[str]
    environment: dict[str, str] = field(default_factory=dict)
    before: Sequence[str] = ()
    options: Sequence[str] = ()
    slow: bool = False
    load: int = 0


def personas() -> list[Persona]:
    """All of them; the last two need to know this machine."""
    isa = "ONEDNN_MAX_CPU_ISA"
    awkward = LOGS / "a place of ümläut"
    return [
        Persona(  # with AVX2 alone: each library looks at a variable of its own
            "avx2",
            NUMBERS,
            {
                isa: "AVX2",
                "ATEN_CPU_CAPABILITY": "default",
                "OPENBLAS_CORETYPE": "Haswell",
                "NPY_DISABLE_CPU_FEATURES": " ".join(_numpy_features()),
            },
            # OpenVINO looks at the processor by itself, and crashes where that has AVX-512 and its oneDNN may
            # use less.
            options=("-k", "not openvino"),
        ),
        # Nothing but torch and OpenVINO reads this variable.
        Persona("avx512", NETWORKS, {isa: "AVX512_CORE"}),
        Persona("vnni", NETWORKS, {isa: "AVX512_CORE_VNNI"}),
        Persona(
            "one-core",
            (*NETWORKS, *THREADS, *WAITS),
            before=("taskset", "-c", str(min(os.sched_getaffinity(0)))),
        ),
        Persona(  # the kills are half of it, and of one file: by file they would keep one worker alone
            "load",
            WAITS,
            options=("--dist", "worksteal"),
            slow=True,
            load=4 * len(os.sched_getaffinity(0)),
        ),
        Persona(
            "another-place",
            PLACES,
            {
                "TZ": "Asia/Kathmandu",
                "LC_ALL": "en_US.UTF-8",
                "LANG": "en_US.UTF-8",
                "TMPDIR": str(awkward),
            },
            options=("--basetemp", str(awkward / "b")),
        ),
        Persona("another-order", (*PLACES, *NUMBERS), options=("-p", "randomly", "--randomly-seed=1")),
        Persona("another-user", PLACES, {"LC_ALL": "C", "LANG": "C"}, before=_as_user()),
    ]


def main() -> None:
    """Run the personas asked for, or all."""
    known = {persona.name: persona for persona in personas()}
    parser = argparse.ArgumentParser(prog="scripts/test --elsewhere", description=__doc__)
    parser.add_argument("personas", nargs="*", metavar="PERSONA", help=f"default: all of {', '.join(known)}")
    wanted = parser.parse_args().personas or list(known)
    for name in wanted:
        if name not in known:
            parser.error(f"no persona {name!r}: choose from {', '.join(known)}")
    LOGS.mkdir(parents=True, exist_ok=True)
    failed = [name for name in wanted if not run(known[name])]
    but = f", not {', '.join(failed)}" if failed else ""
    print(f"{len(wanted) - len(failed)} of {len(wanted)} personas passed{but}")
    sys.exit(1 if failed else 0)


def run(persona: Persona) -> bool:
    """Run a persona's tests and print what came of it."""
    if persona.name == "another-user" and not persona.before:
        why = "it is not root's" if os.getuid() else "neither runuser nor setpriv can run Python here"
        print(f"{persona.name}: this one, {why}; another locale all the same", flush=True)
    place = Path(persona.environment.get("TMPDIR", LOGS / persona.name))
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    if "runuser" in persona.before:
        shutil.chown(place, USER, USER)
    own = {"TMPDIR": str(place), "HOME": str(place), "XDG_CACHE_HOME": str(place / "cache")}
    command = [
        *persona.before,
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--no-cov",
        "-n",
        "0" if "taskset" in persona.before else "auto",
        "--dist",
        "loadfile",
        *persona.options,
    ]
    command += [] if persona.slow else ["-m", "not slow"]
    began, log = time.monotonic(), LOGS / f"{persona.name}.log"
    with _load(persona.load), log.open("wb") as stream:
        alone = {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        environment = {**os.environ, **alone, **own, **persona.environment}
        code = subprocess.run(
            [*command, *persona.tests], cwd=ROOT, env=environment, stdout=stream, stderr=subprocess.STDOUT
        ).returncode
    text = log.read_text(errors="replace")
    summary = re.findall(r"^(?:=+ )?(\d+ (?:passed|failed|error).*? in [\d.]+s)", text, re.MULTILINE)
    counted = summary[-1].partition(" in ")[0] if summary else f"pytest ended with {code}, see {log}"
    print(f"{persona.name}: {counted}, {time.monotonic() - began:.0f} s", flush=True)
    for line in re.findall(r"^(?:FAILED|ERROR) .*$", text, re.MULTILINE):
        print(f"    {line}", flush=True)
    if code == 0:
        shutil.rmtree(place, ignore_errors=True)
    return code == 0


def _numpy_features() -> list[str]:
    """What NumPy was built to use where a processor has it, and this one has."""
    from numpy._core import _multiarray_umath as core

    return [name for name in core.__cpu_dispatch__ if core.__cpu_features__.get(name)]


def _as_user() -> tuple[str, ...]:
    """A command that runs another one without root's powers; empty where that cannot be.

    As another user, or, where Python lies in a folder that is closed to others, as root without capabilities:
    files that forbid reading or writing then forbid it to root as well.
    """
    if os.getuid():
        return ()
    user = ("runuser", "-u", USER, "--preserve-environment", "--")
    powerless = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--")
    if shutil.which("useradd") and shutil.which("runuser"):
        subprocess.run(["useradd", "--system", "--no-create-home", USER], stderr=subprocess.DEVNULL)
    found = (before for before in (user, powerless) if shutil.which(before[0]) and _runs_python(before))
    return next(found, ())


def _runs_python(before: Sequence[str]) -> bool:
    command = [*before, sys.executable, "-c", "import tfswa.runtime"]
    return subprocess.run(command, cwd=ROOT, stderr=subprocess.DEVNULL).returncode == 0


@contextmanager
def _load(count: int) -> Iterator[None]:
    """Processes that do nothing, as fast as they can."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
