"""Text on its way out: a terminal, JSON and Markdown get nothing that they would obey or choke on."""

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfswa.runtime.escape import json_text, markdown_text, shown

EVIL = "a\x1b[31mb\x07\x9bc\u202ed\r\n\udc85\ue000é"
TOLD = "a\\x1b[31mb\\x07\\x9bc\\u202ed\\x0d\\x0a\\x85\ue000é"


def test_what_a_terminal_obeys_is_spelled_out() -> None:
    assert shown(EVIL) == TOLD
    assert shown("plain 音楽 | <b>") == "plain 音楽 | <b>"


@given(st.text(st.characters(exclude_categories=())))
def test_any_text_becomes_one_line_that_xml_and_utf8_can_hold(text: str) -> None:
    safe = shown(text)
    assert len(safe.splitlines()) <= 1
    node = ElementTree.Element("case", name=safe)
    assert ElementTree.fromstring(ElementTree.tostring(node)).get("name") == safe


def test_a_cell_of_markdown_stays_one_cell() -> None:
    assert markdown_text("a|b<script>&\n") == "a\\|b&lt;script&gt;&amp;\\x0a"


def test_json_keeps_what_unicode_has_and_spells_out_bytes() -> None:
    given = {"n\udc85": [EVIL, 1, None, True], "deep": {"a": ("b\ud800",)}}
    text = json_text(given, indent=1)
    assert "\\udc85" not in text
    assert json.loads(text) == {
        "n\\x85": [EVIL.replace("\udc85", "\\x85"), 1, None, True],
        "deep": {"a": ["b\\ud800"]},
    }


PROGRAM = """
import sys
import click
from tfswa.runtime.escape import escaped_output
with escaped_output():
    print(sys.argv[1])
    click.echo(sys.argv[1])
    click.echo(sys.argv[1], err=True)
    assert sys.stdout.isatty() is False
"""


@pytest.mark.parametrize(
    "locale", [{"LC_ALL": "C.UTF-8"}, {"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}]
)
def test_both_streams_take_any_name_in_any_locale(locale: dict[str, str]) -> None:
    name = b"mod\x85\x1b]0;title\x07\xc3\xa9"
    done = subprocess.run(
        [sys.executable.encode(), b"-c", PROGRAM.encode(), name],
        capture_output=True,
        timeout=600,
        check=True,
        env={**os.environ, **locale},
    )
    lines = [*done.stdout.splitlines(), *done.stderr.splitlines()]
    assert len(lines) == 3
    for line in lines:
        assert line.startswith(b"mod\\x85")
        assert not set(line) & set(range(32)), line
    assert b"\x1b" not in done.stdout + done.stderr


def test_a_terminal_gets_no_escape_of_a_name(tmp_path: Path) -> None:
    """Under a pseudo-terminal, where click passes colors on."""
    import pty

    owner, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "tfswa.runtime", "separate", "\x1b]0;song.wav", "-o", str(tmp_path / "o")],
        stdout=terminal,
        stderr=terminal,
        cwd=tmp_path,
    )
    os.close(terminal)
    told = b""
    try:
        while piece := os.read(owner, 4096):
            told += piece
    except OSError:  # EIO: the process has ended
        pass
    os.close(owner)
    assert process.wait() == 1
    assert b"\x1b]0;" not in told
    assert b"\\x1b]0;song.wav cannot be opened" in told
