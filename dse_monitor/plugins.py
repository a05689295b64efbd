"""Extension points: a table of built-in names, and what installed packages add to it through entry points.

A table has lines of ``name: "module:attribute"``, and a module is imported when its name is asked for. Other
packages add names in the entry-point group of the table, such as ``dse_monitor.sinks``. Which packages do is
looked up at most once per process, and only when a name is not built in or when every name is wanted: it took
6 ms with 133 installed packages and 12 ms with 333, and importing importlib.metadata another 30 ms, where
torch or timm have not done it.

A faulty plugin harms nobody who does not ask for it: where every name is tried, it is skipped with a warning;
where it is asked for by name, the same text is an error. It never replaces another name.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from dse_monitor.errors import PluginError, one_line

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUPS = "dse_monitor."  # begins the name of every group
LOGGER = logging.getLogger("dse_monitor.plugins")
T = TypeVar("T")


class Registry(Generic[T]):
    """The names of one extension point.

    Args:
        group: entry-point group in which packages add names.
        what: one of the things, for messages: "alert sink".
        table: built-in names in their order, each with its ``module:attribute``.
        check: called with the name and what a plugin gives for it; raises, whatever the class of the error,
            with a text that says what the contract asks for. Built-in ones are checked by tests instead.
    """

    def __init__(self, group: str, what: str, table: Mapping[str, str], check: Callable[[str, Any], None]):
        self.group, self.what, self.table = group, what, table
        self._check = check
        self._loaded: dict[str, T] = {}
        self._faults: dict[str, str] = {}
        self._warned: set[str] = set()

    def names(self) -> list[str]:
        """Built-in names in the order of the table, then those of plugins, sorted; nothing is imported."""
        return list(dict.fromkeys((*self.table, *sorted(self._added()))))

    def load(self, name: str) -> T:
        """What a name stands for.

        Raises:
            KeyError: there is no such name.
            PluginError: a plugin's name that cannot be used; says whose it is, why, and what to do.
        """
        if name in self.table:
            return _attribute(self.table[name])
        return self._load_plugin(name, self._added()[name])

    def load_all(self) -> dict[str, T]:
        """What every name stands for, in the order of :meth:`names`; logs a warning for plugins it skips."""
        found: dict[str, T] = {name: _attribute(place) for name, place in self.table.items()}
        for name, points in sorted(self._added().items()):
            try:
                found[name] = self._load_plugin(name, points)
            except PluginError as error:
                if name not in self._warned:
                    self._warned.add(name)
                    LOGGER.warning("%s", error)
        return found

    def origin(self, name: str) -> str:
        """The package a name comes from, with its version; empty for a built-in one."""
        return "" if name in self.table else " and ".join(_package(p) for p in self._added()[name])

    def _added(self) -> dict[str, list[EntryPoint]]:
        return entry_points().get(self.group, {})

    def _load_plugin(self, name: str, points: list[EntryPoint]) -> T:
        if name not in self._loaded and name not in self._faults:
            if name in self.table:
                self._faults[name] = self._fault(points, f"the built-in {self.table[name]!r} has the name")
            elif len(points) > 1:
                self._faults[name] = self._fault(points, "they share one name")
            else:
                self._try_loading(name, points[0])
        if name in self._faults:
            raise PluginError(self._faults[name])
        return self._loaded[name]

    def _try_loading(self, name: str, point: EntryPoint) -> None:
        reason = ""
        try:
            with quiet():
                thing = point.load()
                reason = "it breaks the contract: "
                self._check(name, thing)
            self._loaded[name] = thing
        except KeyboardInterrupt:  # Ctrl-C while somebody else's code is slow
            raise
        except BaseException as error:  # whatever that code does
            reason = reason or f"{type(error).__name__}: "
            self._faults[name] = self._fault([point], reason + one_line(error))

    def _fault(self, points: list[EntryPoint], reason: str) -> str:
        given = " and ".join(f"{_package(point)} ({point.name} = {point.value!r})" for point in points)
        return (
            f"the {self.what} {points[0].name!r} of {given} in {self.group} cannot be used: {reason}. "
            f"Update or uninstall {'it' if len(points) == 1 else 'one of them'}; see docs/adding.md"
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Somebody else's code prints to standard error, as the output may be JSON, and changes no folder."""
    folder, kept = None, -1
    with contextlib.suppress(OSError):  # the current folder may be gone
        folder = os.getcwd()
    with contextlib.suppress(OSError, AttributeError):  # no output, none to keep clean
        sys.stdout.flush()
        kept = os.dup(1)
        os.dup2(2, 1)
    try:
        with open(os.devnull if kept < 0 else os.dup(2), "w", encoding="utf-8") as instead:
            with contextlib.redirect_stdout(instead):
                yield
    finally:
        if kept >= 0:
            os.dup2(kept, 1)
            os.close(kept)
        if folder is not None:
            os.chdir(folder)


@functools.cache
def entry_points() -> dict[str, dict[str, list[EntryPoint]]]:
    """Entry points of installed packages by group and name; several of one name are a conflict.

    Of several copies of a package that add names, the first on the module search path counts, as for imports.
    """
    from importlib.metadata import distributions  # a process without plugins to look for saves its time

    found: dict[str, dict[str, list[EntryPoint]]] = {}
    seen: set[str] = set()
    for package in distributions():
        try:
            text = package.read_text("entry_points.txt")
            if not text or GROUPS not in text or package.name.lower() in seen:
                continue
            seen.add(package.name.lower())
            for point in package.entry_points:
                if point.group.startswith(GROUPS):
                    found.setdefault(point.group, {}).setdefault(point.name, []).append(point)
        except Exception as error:  # damaged metadata of one package
            LOGGER.warning("entry points of an installed package cannot be read: %s", one_line(error))
    return found


def _attribute(place: str) -> Any:
    module, _, attribute = place.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _package(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unnamed package"
