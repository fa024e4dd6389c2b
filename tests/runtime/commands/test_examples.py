"""Help ends with two examples, and they are commands that exist with options that exist."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import click
import pytest
from command_line import Tfx

from tfswa.runtime import cli
from tfswa.runtime.commands.examples import EXAMPLES

pytest.importorskip("torch", reason="torch is not installed: some commands need it")


def test_every_command_has_two() -> None:
    names = {" ".join(path) for path, _ in every_command(cli.tfx)}
    assert EXAMPLES.keys() == names - {"parity measure"}  # what `tfx parity` does
    assert {len(lines) for lines in EXAMPLES.values()} == {2}


@pytest.mark.parametrize("name", EXAMPLES)
def test_they_parse_and_end_the_help(tfx: Tfx, name: str) -> None:
    done = tfx(*name.split(), "--help")
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


def every_command(group: click.Group, *above: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Each command with the words that lead to it."""
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from every_command(command, *above, name)
        yield (*above, name), command


def test_no_path_may_be_empty() -> None:
    """``"$SONGS"``, where it is unset, would be the working folder: in every command."""
    paths = [
        parameter
        for _, command in every_command(cli.tfx)
        for parameter in command.params
        if isinstance(parameter.type, click.Path)
    ]
    assert len(paths) > 30
    for parameter in paths:
        with pytest.raises(click.BadParameter, match="an empty path: for this folder say"):
            parameter.type.convert("", parameter, None)
