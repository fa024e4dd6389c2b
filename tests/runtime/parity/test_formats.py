"""Verdicts as Markdown and JUnit XML: whatever a song is called, the files stay what they are."""

import dataclasses
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
from parity_fakes import certificate, signal

from tfswa.runtime.commands.parity_measure import _print
from tfswa.runtime.gates import default_gates
from tfswa.runtime.parity.certificate import GraphFigures
from tfswa.runtime.parity.judge import judge
from tfswa.runtime.parity.report.formats import junit, markdown, text
from tfswa.runtime.parity.report.page import page
from tfswa.runtime.parity.verdict import Verdict

NAME = "a\x1b[2J|<script>\n\udc85 & é"
SHOWN = "a\\x1b[2J|<script>\\x0a\\x85 & é"


def judged() -> list[Any]:

    rows = [dataclasses.replace(signal(1.0), item=NAME)]
    made = certificate(signal=rows, quality=[])
    return [(made, judge(made, default_gates()))]


def test_junit_is_xml_and_names_are_whole() -> None:
    suites = ElementTree.fromstring(junit(NAME, judged()).encode())
    assert suites.get("name") == f"tfx parity {SHOWN}"
    case = suites.find("testsuite/testcase")
    assert case is not None
    assert case.get("name") == f"{SHOWN}: vocals"
    failure = case.find("failure")
    assert failure is not None
    assert failure.text is not None
    assert f"of vocals on {SHOWN} is" in failure.text


def test_a_cell_of_markdown_stays_a_cell() -> None:
    lines = markdown(NAME, judged(), default_gates()).splitlines()
    row = next(line for line in lines if line.startswith("| a"))
    assert row.startswith("| a\\x1b[2J\\|&lt;script&gt;\\x0a\\x85 &amp; é | vocals | 1.0 |")
    assert "<script>" not in "\n".join(lines)
    assert "\x1b" not in "\n".join(lines)


def test_a_table_in_a_terminal_keeps_its_lines() -> None:
    lines = "\n".join(text(judged(), default_gates())).splitlines()
    assert any(line.startswith(SHOWN) for line in lines)


def test_of_many_states_the_worst_is_told() -> None:
    figures = {"next.b": 81.5, "vocals": 120.0, "next.a": 90.0, "next.c": None}
    rows = [GraphFigures("a chunk", part, 1e-5, snr, snr is None) for part, snr in figures.items()]
    made = certificate(graph=rows, quality=[])
    told = [line for line in text([(made, [])], default_gates()) if line.startswith("graph alone")]
    assert told == [
        "graph alone, vocals: 120.0 dB SNR, relative error 1.0e-05",
        "graph alone, the worst of 3 states, next.b: 81.5 dB SNR, relative error 1.0e-05",
    ]
    found = page(NAME, [(made, [])], default_gates(), None)
    assert "the worst of 3 states, next.b" in found
    assert "next.a" not in found


def test_html_has_no_surrogates() -> None:
    found = page(NAME, judged(), default_gates(), None).encode().decode()
    assert "<h1>Parity of a\\x1b[2J|&lt;script&gt;\n\\x85 &amp; é</h1>" in found


def test_what_cannot_run_here_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    missing = {f"trt {precision}": "no engine: build one" for precision in ("fp32", "fp16", "int8")}
    model: Any = SimpleNamespace(name="mine", bundle=None)
    _print(Verdict(model, [], default_gates(), missing))
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2] == "cannot run here: trt fp32, trt fp16, trt int8; --json says why"
