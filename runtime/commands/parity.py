"""``tfx parity``: a group whose first command, measuring, is meant where none is named."""

from __future__ import annotations

import click

from tfswa.runtime.commands.parity_localize import localize
from tfswa.runtime.commands.parity_measure import measure
from tfswa.runtime.commands.parity_seams import seams
from tfswa.runtime.errors import UsageError

FORMER = {  # options that are commands now
    "--seams": "tfx parity seams MODEL",
    "--localize": "tfx parity localize MODEL",
    "--sign": "tfx sign MODEL --key KEY",
}


class MeasuringGroup(click.Group):
    """``tfx parity MODEL`` is ``tfx parity measure MODEL``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the command's name in front where there is none."""
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            for arg in args:
                if (name := arg.partition("=")[0]) in FORMER:
                    raise UsageError(f"{name} is a command of its own: {FORMER[name]}")
            args = ["measure", *args]
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Show the options of measuring, then the other commands."""
        click.Command.format_options(measure, click.Context(measure, ctx, info_name="measure"), formatter)
        self.format_commands(ctx, formatter)


@click.group(cls=MeasuringGroup, subcommand_metavar="[MODEL]... | COMMAND ...", options_metavar="[OPTIONS]")
def parity() -> None:
    """Measure in dB what MODEL's artifacts lost against the eager network, stem by stem.

    The network alone, the signal end to end, and the quality against true stems. The figures are kept in the
    bundle's parity.json, without verdicts. Exit code 3 if a gate is not met. A measuring that was stopped
    goes on where it was.
    """


for _command in (measure, seams, localize):
    parity.add_command(_command)
