"""Sentences about a table: where they stand, how they print, and the nearest right word."""

from __future__ import annotations

from isblk.table.problems import Problem, Problems, Say, hint, nearest


def test_a_problem_prints_as_compilers_do_and_leaves_out_what_is_not_known() -> None:
    assert str(Problem("tab", 3, 7, Say.NO_TABLE, "it is so")) == "tab:3:7: it is so"
    assert str(Problem("tab", 3, 0, Say.NO_TABLE, "it is so")) == "tab:3: it is so"
    assert str(Problem("tab", 0, 0, Say.NO_TABLE, "it is so")) == "tab: it is so"


def test_problems_are_told_in_the_order_of_the_file() -> None:
    problems = Problems("tab")
    problems.at(2, 5, Say.TWICE, name="ro")
    problems.at(1, 9, Say.NEEDS, name="idle", other="automount")
    problems.at(2, 1, Say.EMPTY_OPTION)
    assert [(one.line, one.column) for one in problems.in_order()] == [(1, 9), (2, 1), (2, 5)]
    assert problems[0].sentence == "ro is given twice"


def test_json_names_the_kind_of_a_problem() -> None:
    problem = Problem("tab", 3, 7, Say.BAD_VALUE, "it is so")
    assert problem.to_json() == {"file": "tab", "line": 3, "column": 7, "kind": "bad-value", "sentence": "it is so"}


def test_the_nearest_word_is_found_across_dashes_and_capitals() -> None:
    assert nearest("Secret_File", ["user", "secret-file"]) == "secret-file"
    assert nearest("allow-other", ["allow_other"]) == "allow_other"
    assert not nearest("x", ["user", "portal"])
    assert hint("portl", ["portal"]) == "is portal meant?"
    assert hint("x", ["user", "portal"]) == "there are user, portal"


def test_every_sentence_is_one_of_its_own() -> None:
    assert len({say.value for say in Say}) == len(list(Say)) == len(Say.__members__)
