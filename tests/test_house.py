"""The rules of the house (isblk/__init__.py), asserted on the source: who may import whom, what is pure, which test belongs to what."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

TESTS = Path(__file__).parent
HOUSE = TESTS.parent / "isblk"

# What each room may import of the others. Front ends see Devices, never sessions. The target shares the initiator's alphabet, never its
# grammar: sequencing written twice is what makes the tests between the two worth something.
ALPHABET = {"iscsi.pdu", "iscsi.framer", "iscsi.text", "iscsi.keys", "iscsi.chap", "iscsi.names"}
MAY_IMPORT = {
    "errors": set(),
    "logs": {"errors"},
    "scsi": {"errors"},
    "iscsi": {"errors"},
    "link": {"errors", "iscsi"},
    "discover": {"errors", "iscsi", "link"},
    "block": {"errors", "iscsi", "scsi", "link"},
    "export": {"errors", "block.request", "block.gate", "link.plane"},  # the plane: export/nbd.py serves its clients on it
    "target": {"errors", "scsi", *ALPHABET},
}
PURE = (
    "table.problems",
    "table.fields",
    "table.options",
    "table.entry",
    "table.agreement",
    "scsi",
    "iscsi",
    "export.files",
    "export.fusewire",
    "export.nbdwire",
    "block.choose",
    "target.core",
    "target.unit",
)
IMPURE = {"trio", "socket", "time", "select", "selectors", "asyncio", "threading", "subprocess", "signal"}
MODULE_LINES = 600
FUNCTION_LINES = 80


class Import(NamedTuple):
    name: str  # dotted, of the module or of the thing in it
    line: int
    lazy: bool  # inside a function


def inside(name: str, room: str) -> bool:
    return name == room or name.startswith(room + ".")


def dotted(path: Path) -> str:
    parts = path.relative_to(HOUSE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imports(node: ast.AST, lazy: bool = False) -> Iterator[Import]:
    """Every import below a node; `from a import b` counts as a.b, which is a module or a thing in module a."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, child.lineno, lazy) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"line {child.lineno}: a relative import hides which room it reaches into"
            yield from (Import(f"{child.module}.{alias.name}", child.lineno, lazy) for alias in child.names)
        else:
            yield from imports(child, lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))


def of_the_house(path: Path) -> Iterator[Import]:
    for one in imports(parsed(path)):
        if inside(one.name, "isblk") and one.name != "isblk.__version__":
            yield one._replace(name=one.name.removeprefix("isblk").removeprefix("."))


MODULES = sorted(HOUSE.rglob("*.py"))
for module in (*MODULES, *TESTS.rglob("*.py")):
    parsed(module)  # now: what is there before the first test is left out of the garbage collection behind each (conftest.py)
every_module = pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(HOUSE)))


@every_module
def test_imports_point_down_only(path: Path) -> None:
    room = dotted(path).split(".")[0]
    if room not in MAY_IMPORT:  # cli, daemon and their helpers stand above all rooms; the next two tests are about them
        return
    allowed = MAY_IMPORT[room] | {room}
    up = [f"line {one.line}: {one.name}" for one in of_the_house(path) if not any(inside(one.name, each) for each in allowed)]
    assert not up, f"{room} may import {sorted(allowed)} only"


@every_module
def test_nobody_imports_the_command_line(path: Path) -> None:
    if not inside(dotted(path), "cli") and path.stem != "__main__":
        assert not [one for one in of_the_house(path) if inside(one.name, "cli")]


@every_module
def test_the_target_is_imported_lazily_by_the_command_line_only(path: Path) -> None:
    if not inside(dotted(path), "target"):
        reached = [one for one in of_the_house(path) if inside(one.name, "target")]
        assert all(one.lazy for one in reached)
        assert not reached or inside(dotted(path), "cli")


@every_module
def test_pure_rooms_have_no_clock_no_socket_and_no_await(path: Path) -> None:
    if any(inside(dotted(path), room) for room in PURE):
        assert not [one for one in imports(parsed(path)) if one.name.split(".")[0] in IMPURE]
        assert not [node.lineno for node in ast.walk(parsed(path)) if isinstance(node, ast.AsyncFunctionDef | ast.Await)]


@every_module
def test_a_module_starts_by_saying_what_it_knows(path: Path) -> None:
    assert ast.get_docstring(parsed(path)), "no docstring"


@every_module
def test_nothing_grows_too_long(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MODULE_LINES
    functions = (node for node in ast.walk(parsed(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    lengths = {node.name: (node.end_lineno or node.lineno) - node.lineno + 1 for node in functions}
    assert not {name: length for name, length in lengths.items() if length > FUNCTION_LINES}


def test_each_module_has_its_test_module_and_each_test_module_its_module() -> None:
    wanted = {path.relative_to(HOUSE).parent / f"test_{path.name}" for path in MODULES if not path.stem.startswith("__")}
    apart = {TESTS / "system", TESTS / "interop", TESTS / "support"}
    found = {path.relative_to(TESTS) for path in TESTS.rglob("test_*.py") if path != Path(__file__) and not apart & set(path.parents)}
    assert sorted(map(str, wanted - found)) == [], "modules without a test module"
    assert sorted(map(str, found - wanted)) == [], "test modules without a module"


def test_no_test_sleeps() -> None:
    sleepers = []
    for path in TESTS.rglob("*.py"):
        calls = (node.func for node in ast.walk(parsed(path)) if isinstance(node, ast.Call))
        if path.name != "waiting.py" and any(ast.unparse(call) in ("time.sleep", "sleep") for call in calls):
            sleepers.append(path.name)
    assert not sleepers, "wait for the event itself, with support.waiting.until where it gives no signal"


def test_what_inherits_from_what_is_compiled_is_compiled() -> None:
    """Python classes cannot inherit from compiled ones; setup.py names what is compiled."""
    source = (HOUSE.parent / "setup.py").read_text()
    compiled = {path for path in MODULES if _is_compiled(source, path)}
    assert len(compiled) > 25
    classes = {node.name: path for path in compiled for node in parsed(path).body if isinstance(node, ast.ClassDef)}
    for path in set(MODULES) - compiled:
        if inside(dotted(path), "target"):
            continue
        taken = {one.name.rpartition(".")[2] for one in of_the_house(path) if f"{one.name.rpartition('.')[0]}" in map(dotted, compiled)}
        for node in parsed(path).body:
            if isinstance(node, ast.ClassDef):
                bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
                assert not bases & taken & classes.keys(), f"{path}: {node.name}"


def _is_compiled(source: str, path: Path) -> bool:
    """Whether the list in setup.py names a module."""
    namespace: dict[str, list[str]] = {}
    exec(source[source.index("COMPILED = ") : source.index('"""The hot path')], namespace)
    return str(path.relative_to(HOUSE.parent)) in namespace["COMPILED"]
