"""The table of sentences: each is whole, and each is provoked by a test."""

from __future__ import annotations

import ast
import re
import string
from pathlib import Path

import pytest

from isblk.doctor.findings import WORST_FIRST
from isblk.doctor.sentences import SECTIONS, SENTENCES, Severity
from isblk.errors import ExitCode

HERE = Path(__file__).parent


def promised() -> set[str]:
    """The names in every `pytest.mark.provokes(...)` of this directory; conftest.py sees to it that the promises are kept."""
    found = set()
    for path in HERE.glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.provokes":
                found |= {ast.literal_eval(argument) for argument in node.args}
    return found


def test_every_sentence_is_provoked_by_a_test_and_no_other_is_promised() -> None:
    assert sorted(set(SENTENCES) - promised()) == []
    assert sorted(promised() - set(SENTENCES)) == []


@pytest.mark.parametrize("name", SENTENCES)
def test_a_sentence_is_whole(name: str) -> None:
    sentence = SENTENCES[name]
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) and sentence.section in SECTIONS
    assert sentence.text and not sentence.text.endswith(".")
    assert bool(sentence.remedy) == (sentence.severity in (Severity.HINT, Severity.WARNING, Severity.FAULT))
    assert (sentence.code in WORST_FIRST) == (sentence.severity is Severity.FAULT)
    assert sentence.code is not ExitCode.BUG
    for template in (sentence.text, sentence.remedy):
        assert all(field is None or field.isidentifier() for _, field, _, _ in string.Formatter().parse(template))


def test_sections_come_in_the_order_of_the_examination() -> None:
    order = list(dict.fromkeys(sentence.section for sentence in SENTENCES.values()))
    assert order == list(SECTIONS)
