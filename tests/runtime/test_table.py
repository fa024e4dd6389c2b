"""Plain tables: columns that line up, nothing wider than it must be."""

import sys

import pytest
from terminal import terminal, text_file

from tfswa.runtime.table import decimals, markdown_table, text_table


def test_text_goes_left_numbers_right_and_none_is_a_dash() -> None:
    table = text_table(
        ("stem", "SDR dB", "chunks"), [("vocals", 7.123, 5), ("other", -12.0, 1000), ("bass", None, None)]
    )
    assert table.splitlines() == [
        "stem    SDR dB  chunks",
        "------  ------  ------",
        "vocals    7.12       5",
        "other   -12.00    1000",
        "bass         -       -",
    ]


def test_digits() -> None:
    assert text_table(("dB",), [(0.12345,)], digits=4).splitlines()[-1] == "0.1235"


def test_one_text_makes_a_column_of_texts() -> None:
    rows = text_table(("SNR dB", "x"), [("identical", 1), (130.5, 2)]).splitlines()
    assert rows[2:] == ["identical  1", "130.50     2"]


def test_no_rows() -> None:
    assert text_table(("stem", "SDR dB"), []).splitlines() == ["stem  SDR dB", "----  ------"]


def test_no_spaces_at_line_ends() -> None:
    table = text_table(("name", "verdict"), [("a", "x"), ("b", "longer")])
    assert all(line == line.rstrip() for line in table.splitlines())


def test_columns_follow_the_widest_cell() -> None:
    lines = text_table(("a", "b"), [("a long name", 1.0), ("s", 123456.0)]).splitlines()
    assert {len(line) for line in lines} == {len("a long name  123456.00")}


def test_wide_characters_and_empty_cells() -> None:
    assert text_table(("a", "b"), [("", "ü")]).splitlines() == ["a  b", "-  -", "   ü"]


def test_markdown() -> None:
    assert markdown_table(("a", "b"), [(1, None), ("x", 2.5)]) == [
        "| a | b |",
        "| --- | --- |",
        "| 1 | - |",
        "| x | 2.5 |",
    ]


def test_what_rounds_to_nothing_has_no_minus() -> None:
    assert [decimals(value, 2) for value in (-0.004, -0.0, 0.004, -0.006)] == [
        "0.00",
        "0.00",
        "0.00",
        "-0.01",
    ]
    assert text_table(("dB",), [(-0.001,)]).splitlines()[-1] == "0.00"
    assert markdown_table(("dB",), [(-0.0,)])[-1] == "| 0.0 |"


def test_digits_of_each_column() -> None:
    rows = text_table(("SNR dB", "drift dB"), [(28.2, -0.00012)], (1, 4)).splitlines()
    assert rows[-1] == "  28.2   -0.0001"


def test_wide_letters_and_accents_line_up() -> None:
    # 夜 takes two cells of a terminal; an accent that follows its letter takes none.
    lines = text_table(("song", "SDR dB"), [("夜に", 1.0), ("cafe\u0301", 2.0)]).splitlines()
    assert lines == ["song  SDR dB", "----  ------", "夜に    1.00", "cafe\u0301    2.00"]


WIDE = (("backend", "precision", "median ms", "SNR dB", "note"), [("ort", "fp32", 12.0, 138.5, "-")])


def test_a_wide_table_is_folded_beside_what_names_the_row() -> None:
    assert text_table(*WIDE, width=32).splitlines() == [
        "backend  precision  median ms",
        "-------  ---------  ---------",
        "ort      fp32           12.00",
        "",
        "backend  precision  SNR dB  note",
        "-------  ---------  ------  ----",
        "ort      fp32       138.50  -",
    ]


@pytest.mark.parametrize("width", [1, 20, 31, 46, 47])
def test_every_column_is_there_at_any_width(width: int) -> None:
    lines = text_table(*WIDE, width=width).splitlines()
    cells = {cell.strip() for line in lines for cell in line.split("  ")}
    assert cells >= {"median ms", "SNR dB", "note", "138.50"}
    if width >= 31:  # the keys and the widest column
        assert max(map(len, lines)) <= width


def test_it_is_folded_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    whole = text_table(*WIDE, width=1000)
    assert text_table(*WIDE) == whole  # pytest's stdout is none
    with monkeypatch.context() as patch, terminal(36) as (descriptor, _), text_file(descriptor) as stream:
        patch.setattr(sys, "stdout", stream)
        patch.setattr(sys, "__stdout__", stream)  # whose terminal shutil asks
        assert text_table(*WIDE) == text_table(*WIDE, width=36)
    assert text_table(*WIDE) == whole
