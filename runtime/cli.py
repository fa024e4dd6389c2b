"""The command ``tfx``: a table of lazy commands, and the one place where errors become exit codes."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from importlib.metadata import version
from keyword import iskeyword

import click

from tfswa.runtime.commands.examples import epilog
from tfswa.runtime.errors import BackendUnavailable, TfxError, UsageError, did_you_mean
from tfswa.runtime.escape import escaped_output, json_text, nothing_printed, shown

# name -> (module, what it does): nothing is imported until a command runs.
COMMANDS = {
    "separate": ("tfswa.runtime.commands.separate", "Separate songs into stems."),
    "combine": ("tfswa.runtime.commands.combine", "Make one model of several: an ensemble."),
    "parity": ("tfswa.runtime.commands.parity", "Measure in dB what an artifact lost against eager torch."),
    "sign": ("tfswa.runtime.commands.sign", "Sign the certificates that a bundle holds."),
    "bench": ("tfswa.runtime.commands.bench", "Time every backend here, beside what each costs in dB."),
    "evaluate": ("tfswa.runtime.commands.evaluate", "Measure SDR, ISR, SIR, SAR on songs with true stems."),
    "inspect": ("tfswa.runtime.commands.inspect", "Describe a bundle, a model file or a family."),
    "doctor": ("tfswa.runtime.commands.doctor", "Say what works here, what does not, and how to mend it."),
    "models": ("tfswa.runtime.commands.models", "List the models and families that are at hand."),
    "train": ("tfswa.train.cli", "Train a network from a configuration file."),
    "new": ("tfswa.train.cli", "Make a bundle with untrained weights."),
    "import": ("tfswa.train.importers.cli", "Make bundles of weights, published ones or your own."),
    "data": ("tfswa.train.data.cli", "Check, hear and fetch training data."),
    "export": ("tfswa.export.cli", "Export a bundle to ONNX or TorchScript."),
    "calibrate": ("tfswa.calibration.cli", "Find INT8 ranges, and which layers deserve 8 bits."),
    "build-engine": ("tfswa.export.cli", "Build a TensorRT engine from a bundle's ONNX graph."),
}


def attribute(command: str) -> str:
    """Name of a command's function; that of one which is a word of Python's own ends in ``_``."""
    name = command.replace("-", "_")
    return f"{name}_" if iskeyword(name) else name


class LazyGroup(click.Group):
    """Imports a command's module when that command is asked for, not before."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command; compiled code that sets itself up must not be interrupted, so signals wait."""
        from tfswa.runtime.files.signals import held_back

        if cmd_name not in COMMANDS:
            return None
        module = COMMANDS[cmd_name][0]
        try:
            with held_back():
                command: click.Command = getattr(import_module(module), attribute(cmd_name))
        except ModuleNotFoundError as error:
            raise _missing(cmd_name, error) from error
        command.epilog = epilog(cmd_name)
        for name, below in getattr(command, "commands", {}).items():
            below.epilog = epilog(f"{cmd_name} {name}")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does; a name that is not in the table is answered with the nearest that is."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise click.UsageError(f"no command {args[0]!r}{did_you_mean(args[0], COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("tfswa"), prog_name="tfx")
def tfx() -> None:
    """Train, export, build and stream music-separation networks, and prove what it cost in dB."""
    from tfswa.runtime.files.sweeping import own_temporary, sweep_all

    sweep_all()
    click.get_current_context().with_resource(own_temporary())


def main() -> None:
    """Run ``tfx``: 0 done, 1 failure, 2 usage, 3 gate not met, 4 backend or device missing, 130 Ctrl-C.

    SIGTERM, SIGHUP and SIGQUIT unwind like Ctrl-C, so that a stopped service or a closed terminal leaves no
    half file either, and exit with 143, 129 and 131.
    """
    from tfswa.runtime.files.signals import end_cleanly, imports_held_back

    end_cleanly()
    try:
        try:
            with escaped_output(), imports_held_back():
                code = _run()
        finally:  # click exits where a reader went away, and the interpreter would complain at its end
            if sys.stdout is not None:  # it was closed before we began
                sys.stdout.flush()
    except BrokenPipeError:  # nobody reads on, maybe not even an error: what is left to write goes nowhere
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere, stream.fileno())
        code = 1
    sys.exit(code)


def _run() -> int:
    """The command line to its exit code; what is raised is told on stderr, with ``--json`` on stdout too."""
    try:
        return int(tfx.main(standalone_mode=False, prog_name="tfx") or 0)
    except TfxError as error:
        hint = _hint_of_dashes() if isinstance(error, UsageError) else ""
        return _tell(f"{error} ({hint})" if hint else error, error.exit_code)
    except ModuleNotFoundError as error:
        try:
            missing = _missing(next((w for w in sys.argv[1:] if w in COMMANDS), "this command"), error)
        except ModuleNotFoundError:
            return report_bug(error)
        return _tell(missing, missing.exit_code)
    except click.ClickException as error:
        error.show()
        if hint := _hint_of_dashes():
            click.echo(f"Hint: {shown(hint)}", err=True)
        _tell_as_json(f"{error.format_message()} ({hint})" if hint else error.format_message())
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _tell("interrupted", 130)
    except BrokenPipeError:
        raise
    except OSError as error:  # a path too long, a folder that may not be read: the system's words will do
        place = "" if error.filename is None else f"{error.filename}: "
        return _tell(f"{place}{error.strerror or error}", 1)
    except MemoryError:
        return _tell("out of memory: lower --batch, or give the process more", 1)
    except Exception as error:
        return report_bug(error)


def report_bug(error: Exception) -> int:
    """Show where an error of our own came from, and ask for a report; the exit code is 1."""
    import traceback

    click.echo("".join(traceback.format_exception(error)).rstrip(), err=True)
    asked = "please report it with the lines above and what `tfx doctor --json` prints"
    return _tell(f"{type(error).__name__}: this is a fault in tfx, not in your files: {asked}", 1)


def _tell(what: object, code: int) -> int:
    click.echo(f"tfx: {shown(what)}", err=True)
    _tell_as_json(what)
    return code


def _tell_as_json(what: object) -> None:
    """Print an object that holds nothing but an error, where ``--json`` was asked for and stdout is empty."""
    if "--json" in _options() and nothing_printed():
        click.echo(json_text({"errors": [{"input": None, "error": shown(what)}]}))


def _options() -> list[str]:
    """What stands on the command line before ``--``."""
    words = sys.argv[1:]
    return words[: words.index("--")] if "--" in words else words


def _hint_of_dashes() -> str:
    """What to do where something that was read as options is also the name of a file; else nothing."""
    for word in _options():
        if len(word) > 1 and word[0] == "-" and os.path.lexists(word):
            return f"{word} is a file here: say ./{word}, or put -- before it"
    return ""


def _missing(what: str, error: ModuleNotFoundError) -> TfxError:
    """Name the extra that brings a missing package."""
    extras = {
        **dict.fromkeys(("torch", "lightning_fabric", "tensorboard", "python_stretch"), "train"),
        **dict.fromkeys(("onnx", "onnxscript"), "export"),
        **dict.fromkeys(("museval", "musdb"), "eval"),
        "matplotlib": "plots",
        "cryptography": "sign",
    }
    if COMMANDS.get(what, ("",))[0].startswith(("tfswa.export", "tfswa.calibration")):
        extras["torch"] = "export"
    name = (error.name or "").partition(".")[0]
    if name in extras:
        return BackendUnavailable(f"{what} needs {name}: pip install 'tfswa[{extras[name]}]'")
    raise error
