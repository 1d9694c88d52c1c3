"""SECURITY.md names tests; each of them is there, and every row but those that say so has one."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`(tests/[\w/.]+)::(\w+)`", PAGE)


@cache
def named_in(path: str) -> frozenset[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return frozenset(
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    )


def test_the_page_names_tests() -> None:
    assert len(NAMED) > 40


@pytest.mark.parametrize(("path", "name"), NAMED, ids=[name for _, name in NAMED])
def test_a_test_that_the_page_names_exists(path: str, name: str) -> None:
    assert name in named_in(path)


def test_every_threat_is_held_by_a_test() -> None:
    rows = [line.split("|") for line in PAGE.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 15
    assert [row[1].strip() for row in rows if "::test_" not in row[3]] == []


def test_the_page_invents_no_address() -> None:
    assert not re.search(r"[\w.]+@[\w-]+\.\w+|mailto:", PAGE)
