"""Plain tables: columns that line up, nothing wider than it must be."""

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
