"""The files that a Python file imports from its own folder, read off its text: nothing is run."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path


def own_files(file: Path, root: Path) -> dict[str, Path]:
    """The file and what it imports below `root`, directly or not, by path relative to it, sorted.

    Imports anywhere in a file count, those in functions too. Names of the standard library are never taken
    from the folder, and what is imported by a name that is made at run time is not seen.
    """
    found: dict[str, Path] = {}
    pending = [file]
    while pending:
        here = pending.pop()
        name = here.relative_to(root).as_posix()
        if name in found:
            continue
        found[name] = here
        try:
            tree = ast.parse(here.read_bytes())
        except (SyntaxError, ValueError, OSError):
            continue  # importing it says what is wrong
        for dotted in _imports(tree, _package(here, root)):
            pending += _files_of(dotted, root)
    return dict(sorted(found.items()))


def top_level(names: dict[str, Path]) -> set[str]:
    """The modules and packages directly below the root that some files belong to."""
    return {name.split("/", 1)[0].removesuffix(".py") for name in names}


def is_served(name: str) -> bool:
    """Whether a module of this name may come from the user's folder."""
    return name not in sys.stdlib_module_names and name != "dse_monitor"


def _package(file: Path, root: Path) -> tuple[str, ...]:
    return file.relative_to(root).parent.parts


def _imports(tree: ast.AST, package: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Every module that may be meant, as the parts of its name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield tuple(alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            base = tuple(node.module.split(".")) if node.module else ()
            if node.level:
                base = (*package[: len(package) - node.level + 1], *base)
            yield base
            for alias in node.names:
                yield (*base, alias.name)


def _files_of(dotted: tuple[str, ...], root: Path) -> Iterator[Path]:
    """The files that importing a module executes, as far as they lie below `root`."""
    if not dotted or not is_served(dotted[0]):
        return
    here = root
    for part in dotted:
        if (module := here / f"{part}.py").is_file() and not (here / part / "__init__.py").is_file():
            yield module
            return
        here = here / part
        if not here.is_dir():
            return
        if (package := here / "__init__.py").is_file():
            yield package
