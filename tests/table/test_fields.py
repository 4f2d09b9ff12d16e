"""Fields, options and escapes of a line, with the columns they stand at."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from isblk.table.fields import Piece, escaped, lines, options, unescaped
from isblk.table.problems import Problems, Say


def test_comments_and_empty_lines_say_nothing_and_fields_know_their_columns() -> None:
    (line,) = lines("# a comment\n\n  \t# one more\n  one\ttwo   three\r\n")
    assert line.number == 4
    assert line.fields == [Piece("one", 3), Piece("two", 7), Piece("three", 13)]
    assert line.end == 19


def test_options_know_their_columns_and_those_of_their_values() -> None:
    found = list(options(Piece("ro,lun=3,,user=", 10)))
    assert found == [
        (Piece("ro", 10), None),
        (Piece("lun", 13), Piece("3", 17)),
        (Piece("", 19), None),
        (Piece("user", 20), Piece("", 25)),
    ]


def test_an_escape_is_three_octal_digits_of_a_byte() -> None:
    problems = Problems("tab")
    assert unescaped(Piece(r"a\040b\054c\134d\303\251", 1), 1, problems) == "a b,c\\dé"
    assert not problems


def test_what_is_no_escape_is_told_with_its_column() -> None:
    for raw, shown, column in (
        (r"ab\n", r"\n", 13),
        (r"\\", r"\\", 11),
        (r"\000", r"\000", 11),
        (r"\777", r"\777", 11),
        (r"a\377", r"\377", 12),
    ):
        problems = Problems("tab")
        assert unescaped(Piece(raw, 11), 5, problems) is None
        ((problem),) = problems
        assert (problem.say, problem.line, problem.column) == (Say.BAD_ESCAPE, 5, column)
        assert problem.sentence.startswith(repr(shown))


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1))
def test_what_is_escaped_is_one_field_that_says_the_same(text: str) -> None:
    problems = Problems("tab")
    (line,) = lines(f"{escaped(text)}")
    (field,) = line.fields
    assert unescaped(field, 1, problems) == text
    assert "," not in field.raw
    assert not problems
