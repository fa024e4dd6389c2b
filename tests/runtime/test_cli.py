"""The command line as a whole: what it lists, what it imports, and how errors become exit codes."""

import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import pytest

from tfswa.runtime import cli
from tfswa.runtime.cli import COMMANDS, main
from tfswa.runtime.errors import (
    AudioError,
    BackendUnavailable,
    BundleError,
    ConfigError,
    ExportError,
    GateError,
    NonFiniteError,
    OutputExists,
    TfxError,
    TrainingError,
    UsageError,
)

HEAVY = {"numpy", "torch", "scipy", "soundfile", "av", "soxr", "onnxruntime", "onnx", "rich"}

Run = Callable[..., int]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """``run("inspect", "demo")``: exit code of that command line, in this process."""

    def call(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["tfx", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        return int(caught.value.code or 0)

    return call


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Makes ``tfx models`` raise that."""

    def plant(error: BaseException) -> None:
        def callback() -> None:
            raise error

        command = click.Command("models", callback=callback)
        monkeypatch.setattr(cli.LazyGroup, "get_command", lambda *_: command)

    return plant


def process(*arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=600, check=False, **options
    )


class TestHelp:
    def test_lists_every_command_and_imports_nothing_heavy(self) -> None:
        probe = (
            "import sys\n"
            "from tfswa.runtime.cli import main\n"
            "sys.argv = ['tfx', '--help']\n"
            "try:\n    main()\n"
            "finally:\n    print('MODULES', *sorted({m.partition('.')[0] for m in sys.modules}))\n"
        )
        done = process("-c", probe)
        assert done.returncode == 0, done.stderr
        shown, _, modules = done.stdout.partition("MODULES")
        assert [line.split()[0] for line in shown.partition("Commands:\n")[2].splitlines() if line] == list(
            COMMANDS
        )
        assert not HEAVY & set(modules.split())

    @pytest.mark.parametrize("command", COMMANDS)
    def test_every_command_has_help(self, run: Run, capsys: pytest.CaptureFixture[str], command: str) -> None:
        pytest.importorskip("torch", reason="torch is not installed: some commands need it")
        assert run(command, "--help") == 0
        assert capsys.readouterr().out.startswith(f"Usage: tfx {command}")

    @pytest.mark.parametrize("command", ["separate", "parity", "inspect", "models"])
    def test_help_of_the_runtimes_commands_needs_no_numpy(self, command: str) -> None:
        probe = (
            "import sys\n"
            "from tfswa.runtime.cli import main\n"
            f"sys.argv = ['tfx', {command!r}, '--help']\n"
            "try:\n    main()\n"
            "finally:\n    print('MODULES', *sorted({m.partition('.')[0] for m in sys.modules}))\n"
        )
        done = process("-c", probe)
        assert done.returncode == 0, done.stderr
        assert not HEAVY & set(done.stdout.partition("MODULES")[2].split())

    def test_the_module_runs_too(self) -> None:
        done = process("-m", "tfswa.runtime", "--version")
        assert (done.returncode, done.stdout.strip()) == (0, f"tfx, version {version('tfswa')}")

    @pytest.mark.parametrize("command", COMMANDS)
    def test_the_table_names_what_is_there(self, command: str) -> None:
        pytest.importorskip("torch", reason="torch is not installed: some commands need it")
        module, summary = COMMANDS[command]
        found = getattr(import_module(module), cli.attribute(command))
        assert isinstance(found, click.Command)
        assert summary.endswith(".")


class TestExitCodes:
    @pytest.mark.parametrize(
        ("kind", "code"),
        [
            (TfxError, 1),
            (AudioError, 1),
            (BundleError, 1),
            (NonFiniteError, 1),
            (ExportError, 1),
            (TrainingError, 1),
            (UsageError, 2),
            (ConfigError, 2),
            (OutputExists, 2),
            (GateError, 3),
            (BackendUnavailable, 4),
        ],
    )
    def test_an_error_is_one_line_and_its_code(
        self, run: Run, raising: Any, capsys: pytest.CaptureFixture[str], kind: type[TfxError], code: int
    ) -> None:
        raising(kind("this and that: do so"))
        assert run("models") == code
        assert capsys.readouterr() == ("", "tfx: this and that: do so\n")

    @pytest.mark.parametrize("kind", [KeyboardInterrupt, click.Abort])
    def test_an_interrupt_is_130(
        self, run: Run, raising: Any, capsys: pytest.CaptureFixture[str], kind: type[BaseException]
    ) -> None:
        raising(kind())
        assert run("models") == 130
        assert capsys.readouterr().err.strip() == "tfx: interrupted"

    def test_what_the_system_refuses_is_one_line(
        self, run: Run, raising: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        raising(PermissionError(13, "Permission denied", "/music"))
        assert run("models") == 1
        assert capsys.readouterr().err == "tfx: /music: Permission denied\n"

    def test_a_fault_of_ours_keeps_its_traceback_and_asks_for_a_report(
        self, run: Run, raising: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        raising(ZeroDivisionError())
        assert run("models") == 1
        lines = capsys.readouterr().err.splitlines()
        assert lines[0].startswith("Traceback")
        assert lines[-1].startswith(
            "tfx: ZeroDivisionError: this is a fault in tfx, not in your files: please"
        )

    def test_memory_that_runs_out_is_one_line(
        self, run: Run, raising: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        raising(MemoryError())
        assert run("models") == 1
        assert capsys.readouterr().err.startswith("tfx: out of memory: ")

    def test_an_unknown_command_is_answered_with_the_nearest(
        self, run: Run, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run("seperate") == 2
        assert "no command 'seperate', did you mean 'separate'?" in capsys.readouterr().err
        assert run("xyzzy", "--help") == 2
        assert "Error: no command 'xyzzy'\n" in capsys.readouterr().err

    def test_an_error_is_escaped(self, run: Run, raising: Any, capsys: pytest.CaptureFixture[str]) -> None:
        raising(AudioError("\x1b[2Ja\udc85.wav\nis empty"))
        assert run("models") == 1
        assert capsys.readouterr().err == "tfx: \\x1b[2Ja\\x85.wav\\x0ais empty\n"

    @pytest.mark.parametrize(
        ("package", "extra"),
        [("torch", "train"), ("tensorboard", "train"), ("onnx", "export"), ("onnxscript", "export")],
    )
    def test_a_missing_optional_package_names_its_extra(
        self, run: Run, raising: Any, capsys: pytest.CaptureFixture[str], package: str, extra: str
    ) -> None:
        raising(ModuleNotFoundError(f"No module named '{package}.sub'", name=f"{package}.sub"))
        assert run("models") == 4
        assert capsys.readouterr().err == f"tfx: models needs {package}: pip install 'tfswa[{extra}]'\n"

    def test_so_does_a_command_whose_module_cannot_be_imported(
        self, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def missing(name: str) -> None:
            raise ModuleNotFoundError("No module named 'torch'", name="torch")

        monkeypatch.setattr(cli, "import_module", missing)
        assert run("train", "--help") == 4
        assert capsys.readouterr().err == "tfx: train needs torch: pip install 'tfswa[train]'\n"

    def test_a_module_of_ours_that_is_missing_is_a_fault(
        self, run: Run, raising: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        raising(ModuleNotFoundError("No module named 'tfswa.x'", name="tfswa.x"))
        assert run("models") == 1
        assert "ModuleNotFoundError: this is a fault in tfx" in capsys.readouterr().err

    @pytest.mark.parametrize(
        "arguments",
        [
            ["separate"],
            ["separate", "a.wav", "--batch", "0"],
            ["separate", "a.wav", "--nothing"],
            ["models", "x"],
        ],
    )
    def test_wrong_options_are_usage(
        self, run: Run, capsys: pytest.CaptureFixture[str], arguments: list[str]
    ) -> None:
        assert run(*arguments) == 2
        assert capsys.readouterr().err.startswith("Usage: tfx ")

    @pytest.mark.parametrize(
        ("command", "name"),
        [
            ("separate", "-dash.wav"),
            ("separate", "-model.wav"),
            ("separate", "-q.wav"),
            ("inspect", "-d.tfx"),
        ],
    )
    def test_a_file_whose_name_begins_with_a_dash_is_told_how_to_name_it(
        self,
        run: Run,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        command: str,
        name: str,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        hint = f"\nHint: {name} is a file here: say ./{name}, or put -- before it\n"
        assert run(command, name) == 2
        assert "is a file here" not in capsys.readouterr().err
        (tmp_path / name).touch()
        assert run(command, name) == 2
        assert capsys.readouterr().err.endswith(hint)
        for way in ([f"./{name}"], ["--", name]):
            run(command, *way)
            error = capsys.readouterr().err
            assert name in error
            assert "is a file here" not in error

    def test_so_is_one_that_was_taken_for_a_value(
        self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "-mixture.wav").touch()
        assert run("separate", "-mixture.wav", "song.wav") == 2
        assert capsys.readouterr().err.startswith("tfx: no model 'ixture.wav'")
        run("separate", "-mixture.wav", "song.wav")
        assert "say ./-mixture.wav, or put -- before it" in capsys.readouterr().err

    def test_nothing_asked_for_is_help(self, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
        assert run() == 2
        assert "Commands:" in capsys.readouterr().err

    def test_a_reader_that_goes_away_is_no_traceback(self, tmp_path: Path) -> None:
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            [sys.executable, "-m", "tfswa.runtime", "models"],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            timeout=600,
            check=False,
        )
        os.close(writer)
        assert done.returncode == 1
        assert done.stderr == ""

    @pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
    def test_streams_that_are_closed_are_not_written_to(self, closed: str, tmp_path: Path) -> None:
        command = f"'{sys.executable}' -m tfswa.runtime models {closed}"
        # Not bash, which has a warning of its own for a locale that is not installed.
        done = subprocess.run(
            ["sh", "-c", command], capture_output=True, text=True, cwd=tmp_path, timeout=600
        )
        assert (done.returncode, done.stderr) == (0, "")
