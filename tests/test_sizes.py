"""No part of the code is so long that it must hold a second subject."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.fast

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("dse_monitor", "trainers", "tb_plugin")

MODULE, CLASS, FUNCTION = 500, 300, 80  # lines at most; chosen by us

# Modules that may be longer, each a table of data without logic, and why it is one piece. None is today.
TABLES: dict[str, str] = {}


def _modules() -> Iterator[Path]:
    """Every file once: dse_monitor/trainers and dse_monitor/tb_plugin are links to the folders beside it."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            parents = path.relative_to(ROOT).parents
            if "node_modules" not in path.parts and not any((ROOT / part).is_symlink() for part in parents):
                yield path


MODULES = {str(path.relative_to(ROOT)): path for path in _modules()}


def too_long(source: str) -> list[str]:
    """Classes and functions of a module beyond the limits, nested ones too, each with its length."""
    limits = {ast.ClassDef: CLASS, ast.FunctionDef: FUNCTION, ast.AsyncFunctionDef: FUNCTION}
    found = []
    for node in ast.walk(ast.parse(source)):
        limit = limits.get(type(node))
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and limit is not None:
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno + 1
            if length > limit:
                found.append(f"{node.name}: {length} lines, {limit} at most")
    return found


def holds_logic(source: str) -> bool:
    """Whether a module defines anything that runs: then it is not a pure table."""
    defining = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return any(isinstance(node, defining) for node in ast.walk(ast.parse(source)))


@pytest.mark.parametrize("name", MODULES)
def test_modules_classes_and_functions_stay_short(name):
    source = MODULES[name].read_text(encoding="utf-8")
    assert not too_long(source)
    if name in TABLES:
        assert not holds_logic(source)
    else:
        assert len(source.splitlines()) <= MODULE


def test_the_three_packages_are_looked_at_once():
    assert {name.partition("/")[0] for name in MODULES} == set(FOLDERS)
    assert len({path.resolve() for path in MODULES.values()}) == len(MODULES)
    assert set(TABLES) <= set(MODULES)


@pytest.mark.parametrize(
    ("kind", "limit"), [("class", CLASS), ("def", FUNCTION), ("async def", FUNCTION), ("    def", FUNCTION)]
)
def test_one_line_too_many_is_found(kind, limit):
    indent = " " * (len(kind) - len(kind.lstrip()) + 4)
    outer = "class Outer:\n" if kind.startswith(" ") else ""
    head = f"{kind} long{'' if kind == 'class' else '()'}:\n"
    body = f"{indent}x = 1\n"
    assert not too_long(outer + head + body * (limit - 1))
    assert len(too_long(outer + head + body * limit)) == 1


def test_a_module_with_functions_is_not_a_table():
    assert not holds_logic('ROWS = (("name", lambda x: x),)\n')
    assert holds_logic("ROWS = ()\n\n\ndef rows():\n    return ROWS\n")
