"""Running the code that the user names: it is loaded once per process, and what goes wrong in it is one line.

A process keeps the code that it loaded first. Torch is imported by that code, not here.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.machinery
import importlib.util
import linecache
import logging
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from dse_monitor.checkpoints.network_code.imported import is_served, top_level
from dse_monitor.checkpoints.network_code.locate import REGISTRY, Code, locate
from dse_monitor.errors import DSEError, NetworkError, one_line
from dse_monitor.plugins import quiet

LOGGER = logging.getLogger("dse_monitor.networks")
_LOADED: dict[str, Loaded] = {}


@dataclass(frozen=True)
class Loaded:
    """Code that was run.

    Attributes:
        code: where it is, and the version that was loaded.
        function: what was named.
    """

    code: Code
    function: Callable[[], Any]

    def call(self) -> Any:
        """What the function returns.

        Raises:
            NetworkError: it fails.
        """
        with running(self.code, self.code.function or self.code.label):
            return self.function()

    @property
    def identity(self) -> str:
        """Sixteen hexadecimal digits, equal for the same function of the same version."""
        return hashlib.sha256(f"{self.code.label}\0{self.code.version}".encode()).hexdigest()[:16]


def loaded(spec: str, expected: str | None = None) -> Loaded:
    """The function that a specification names; its module is run when it is first asked for in a process.

    Args:
        spec: see `locate.locate`.
        expected: the version it had when the work began; with another one, a warning is logged.

    Raises:
        NetworkError: it cannot be found or run.
        PluginError: it is a plugin's that cannot be used.
    """
    if spec not in _LOADED:
        _LOADED[spec] = _load(locate(spec))
    found = _LOADED[spec]
    if expected not in (None, found.code.version):
        LOGGER.warning(
            "the code of %s was %s when it was named, and %s is what this process runs: numbers of both are "
            "not compared; start again to have one code throughout",
            found.code.label,
            expected,
            found.code.version,
        )
    return found


@contextlib.contextmanager
def running(code: Code, doing: str) -> Iterator[None]:
    """Run something of the user's; what it prints goes to standard error, and its errors become one line.

    Modules of its own folder are found meanwhile, before those of other packages.

    Raises:
        NetworkError: whatever it raises, `SystemExit` too, but for Ctrl-C and what memory or a device lacks.
    """
    try:
        with quiet(), _Siblings.found(code.siblings):
            yield
    except DSEError:
        raise
    except KeyboardInterrupt as error:
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # Ctrl-C; a worker gets none
            raise
        raise NetworkError(said(code, doing, error)) from error
    except BaseException as error:
        if _is_device_failure(error):
            raise
        # An OSError among the causes would look as if the checkpoint were gone.
        raise NetworkError(said(code, doing, error)) from (None if isinstance(error, OSError) else error)


def said(code: Code, doing: str, error: BaseException) -> str:
    """What went wrong in the user's code: the last line of his that was running, and the error."""
    where = _where(code, error) or f"in {doing}"
    kind = type(error).__name__
    text = one_line(error)
    advice = ""
    if isinstance(error, ModuleNotFoundError):
        advice = f"; install it where dse-monitor runs ({sys.executable})"
    return f"--network {code.label}: {where}: {kind}{': ' if text else ''}{text[:300]}{advice}"


def _where(code: Code, error: BaseException) -> str:
    """``my_net.py:12 in build``: the innermost frame in the user's folder; empty if there is none."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}:{error.lineno}"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if code.root is not None and code.holds(frame.filename):
            name = "" if frame.name == "<module>" else f" in {frame.name}"
            return f"{Path(frame.filename).relative_to(code.root)}:{frame.lineno}{name}"
    return ""


def _is_device_failure(error: BaseException) -> bool:
    """What whoever runs the network deals with himself: memory, or a lost device."""
    signs = ("CUDA error", "out of memory", "allocate memory")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
    )


def _load(code: Code) -> Loaded:
    function = _function(code)
    after = locate(code.spec)
    if after.version != code.version:
        raise NetworkError(f"--network {code.label}: its code changed while it was loaded; start again")
    if not callable(function) or _is_module(function):
        raise NetworkError(
            f"--network {code.label}: {code.function or 'it'} is a {type(function).__name__}, expected a "
            "function that builds the network"
        )
    return Loaded(code, function)


def _function(code: Code) -> Any:
    if not code.function:
        return REGISTRY.load(code.spec)
    _refuse_strangers(code)
    with running(code, "the module"):
        module = importlib.import_module(code.module) if code.module else _executed(code)
    value: Any = module
    for part in code.function.split("."):
        if not hasattr(value, part):
            names = ", ".join(name for name in vars(module) if not name.startswith("_"))
            raise NetworkError(f"--network {code.label}: there is no {code.function}; there are {names}")
        value = getattr(value, part)
    return value


def _executed(code: Code) -> ModuleType:
    """The module of a file, run under a name that no other module has."""
    assert code.file is not None
    digest = hashlib.sha256(str(code.file).encode()).hexdigest()[:12]
    name = f"_dse_monitor_network_{digest}"
    spec = importlib.util.spec_from_file_location(name, code.file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look modules up
    linecache.checkcache(str(code.file))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _refuse_strangers(code: Code) -> None:
    """A module of the folder whose name belongs to another one already would not be the one that is run."""
    if code.siblings is None:
        return
    for name in top_level(dict.fromkeys(code.files, code.siblings)):
        there = getattr(sys.modules.get(name), "__file__", None)
        if there is not None and not Path(there).is_relative_to(code.siblings):
            raise NetworkError(
                f"--network {code.label}: it imports {name} from its folder, and in this process that is "
                f"{there}; give the file another name"
            )


def _is_module(value: Any) -> bool:
    return hasattr(value, "state_dict") and hasattr(value, "forward") and not isinstance(value, type)


class _Siblings:
    """Finds modules in the folder of the user's file while his code runs, as Python does for a script."""

    def __init__(self, root: Path):
        self._root = str(root)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The module of that name in the folder; None leaves it to others."""
        if path is not None or not is_served(name):
            return None
        found = importlib.machinery.PathFinder.find_spec(name, [self._root], target)
        return found if found is not None and found.origin is not None else None

    @classmethod
    @contextlib.contextmanager
    def found(cls, root: Path | None) -> Iterator[None]:
        """While this runs, modules of the folder are found before others."""
        if root is None:
            yield
            return
        finder = cls(root)
        sys.meta_path.insert(0, finder)
        try:
            yield
        finally:
            sys.meta_path.remove(finder)
