"""Help ends with two examples, and they are commands that exist with options that exist."""

from __future__ import annotations

import shlex

import click
import pytest
from command_line import Tfx

from tfswa.runtime import cli
from tfswa.runtime.commands.examples import EXAMPLES

pytest.importorskip("torch", reason="torch is not installed: some commands need it")


def test_every_command_has_two() -> None:
    assert EXAMPLES.keys() == cli.COMMANDS.keys()
    assert {len(lines) for lines in EXAMPLES.values()} == {2}


@pytest.mark.parametrize("name", EXAMPLES)
def test_they_parse_and_end_the_help(tfx: Tfx, name: str) -> None:
    done = tfx(name, "--help")
    assert done.code == 0
    assert [line.strip() for line in done.out.splitlines()[-2:]] == list(EXAMPLES[name])
    for line in EXAMPLES[name]:
        program, *words = shlex.split(line)
        assert program == "tfx"
        command: click.Command = cli.tfx
        context = click.Context(command)
        while isinstance(command, click.Group):
            found = command.get_command(context, words[0])
            # `tfx parity MODEL` is `tfx parity measure MODEL`.
            command = found or command.get_command(context, "measure") or click.Command("none")
            words = words[1:] if found else words
            context = click.Context(command)
        command.make_parser(context).parse_args(words)  # a wrong option raises
