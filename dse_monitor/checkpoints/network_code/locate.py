"""Where the code that ``--network`` names is, which version of it, and whether it has that function.

Nothing is run: files are parsed, and packages found without importing them.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dse_monitor import plugins
from dse_monitor.checkpoints.network_code.imported import own_files
from dse_monitor.errors import NetworkError, one_line
from dse_monitor.plugins import Registry

GROUP = "dse_monitor.networks"
EXPECTED = "FILE.py:FUNCTION, MODULE:FUNCTION or the name of a plugin"
INSTALLED = ("site-packages", "dist-packages")  # folders of packages that have a version


def _check(name: str, thing: object) -> None:
    if not callable(thing):
        raise TypeError(f"expected a function, found {type(thing).__name__}")


REGISTRY: Registry[object] = Registry(GROUP, "network", {}, _check)


@dataclass(frozen=True)
class Code:
    """The code of a network of one's own.

    Attributes:
        spec: as ``--network`` takes it, with an absolute path.
        label: the same for people: ``my_net.py:build``.
        module: what is imported; empty for a file or a plugin.
        function: its name in the module; empty for a plugin.
        file: the file it is in; None where that is not known without importing it.
        root: the folder from which its imports are resolved.
        version: ``sha256 abcdef123456`` of its files, or name and version of an installed package.
        files: what was hashed, relative to `root`; empty for an installed package.
    """

    spec: str
    label: str
    module: str = ""
    function: str = ""
    file: Path | None = None
    root: Path | None = None
    version: str = ""
    files: tuple[str, ...] = ()

    @property
    def siblings(self) -> Path | None:
        """The folder in which a file's imports are looked for; None for what is imported by name."""
        return self.root if self.function and not self.module else None

    def holds(self, filename: str) -> bool:
        """Whether a source file is the user's: below his folder, or of the package he named."""
        if self.root is None or self.file is None or not Path(filename).is_relative_to(self.root):
            return False
        parts = Path(filename).relative_to(self.root).parts
        if self.siblings is None:
            return parts[0] == self.file.relative_to(self.root).parts[0]
        return not any(part in INSTALLED for part in parts)


def absolute(spec: str) -> str:
    """The specification with the absolute path of its file; others as they are."""
    place, colon, function = _parts(spec)
    return f"{Path(place).expanduser().absolute()}{colon}{function}" if _is_file(place) else spec


def locate(spec: str) -> Code:
    """Where the code of a network is.

    Args:
        spec: FILE.py:FUNCTION, MODULE:FUNCTION or the name of an entry point in `GROUP`.

    Raises:
        NetworkError: there is no such file, module, function or plugin, or it cannot be parsed.
    """
    place, colon, function = _parts(spec)
    if _is_file(place):
        return _of_file(Path(place).expanduser().absolute(), function)
    if not colon:
        return _of_plugin(spec)
    if not all(part.isidentifier() for part in [*place.split("."), *function.split(".")]):
        raise NetworkError(f"--network {spec!r} is not {EXPECTED}")
    return _of_module(place, function, f"{place}:{function}", spec)


def _parts(spec: str) -> tuple[str, str, str]:
    if ":" in spec:
        return spec.rpartition(":")
    return spec, "", ""


def _is_file(place: str) -> bool:
    return place.endswith(".py") or "/" in place


def _of_file(file: Path, function: str) -> Code:
    try:
        text = file.read_bytes()
    except OSError as error:
        found = f" ({error.strerror})" if file.exists() else ""
        raise NetworkError(
            f"--network: {file} is no file that can be read{found}; paths are taken from the current folder"
        ) from error
    _check_function(file, text, function)
    files = own_files(file, file.parent)
    return Code(
        spec=f"{file}:{function}",
        label=f"{file.name}:{function}",
        function=function,
        file=file,
        root=file.parent,
        version=_hash(files),
        files=tuple(files),
    )


def _of_module(module: str, function: str, label: str, spec: str) -> Code:
    """Code that is imported by its name, from an installed package or from anywhere on the search path."""
    top, *inner = module.split(".")
    try:
        found = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        found = None
    if found is None:
        near = Path(f"{module.replace('.', '/')}.py")
        advice = f"for the file in this folder write {near}:{function}" if near.is_file() else "install it"
        raise NetworkError(f"--network {spec}: there is no module {top!r} here; {advice}")
    file = _module_file(found.origin, found.submodule_search_locations, inner)
    if file is None:  # part of an archive, or compiled
        return Code(spec, label, module, function, version=_package_version(top))
    _check_function(file, file.read_bytes(), function)
    root = file.parent if file.name != "__init__.py" else file.parent.parent
    for _ in inner if file.name != "__init__.py" else inner[1:]:
        root = root.parent
    if any(part in INSTALLED for part in file.parts) and (version := _package_version(top)):
        return Code(spec, label, module, function, file, root, version)
    parents = [root.joinpath(*module.split(".")[:n], "__init__.py") for n in range(1, len(inner) + 1)]
    files = own_files(file, root)
    for parent in parents:
        if parent.is_file():
            files.update(own_files(parent, root))
    return Code(spec, label, module, function, file, root, _hash(files), tuple(sorted(files)))


def _module_file(origin: str | None, folders: Iterable[str] | None, inner: list[str]) -> Path | None:
    """The source of a module, found from that of its top-level package without importing it."""
    if not inner:
        return (
            Path(origin) if origin is not None and origin.endswith(".py") and Path(origin).is_file() else None
        )
    for folder in folders or ():
        for file in (
            Path(folder, *inner[:-1], f"{inner[-1]}.py"),
            Path(folder, *inner, "__init__.py"),
        ):
            if file.is_file():
                return file
    return None


def _of_plugin(name: str) -> Code:
    points = plugins.entry_points().get(GROUP, {})
    if name not in points:
        known = ", ".join(sorted(points)) or "none is installed"
        raise NetworkError(
            f"there is no network {name!r} among those that packages add ({known}); expected {EXPECTED}"
        )
    point = points[name][0]
    package = REGISTRY.origin(name)
    try:
        code = _of_module(point.module, point.attr, f"{name} of {package}", name)
    except NetworkError:  # loading it says whose it is
        return Code(name, f"{name} of {package}", version=package)
    version = code.version if code.files else package
    return Code(name, code.label, "", "", code.file, code.root, version, code.files)


def _package_version(module: str) -> str:
    """Name and version of the package that a top-level module belongs to; empty if there is none."""
    from importlib import metadata

    names = metadata.packages_distributions().get(module, [])
    return " and ".join(f"{name} {metadata.version(name)}" for name in dict.fromkeys(names))


def _hash(files: dict[str, Path]) -> str:
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        digest.update(hashlib.sha256(name.encode()).digest())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return f"sha256 {digest.hexdigest()[:12]}"


# The function ---------------------------------------------------------------------------------------------


def _check_function(file: Path, text: bytes, function: str) -> None:
    """Whether a file defines a function that can be called without arguments, as far as its text shows."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError) as error:
        line = f":{error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        reason = error.msg if isinstance(error, SyntaxError) else one_line(error)
        raise NetworkError(f"--network: {file}{line} is not Python: {reason}") from error
    names, imported, certain = _defined(tree.body)
    wanted = function.split(".", 1)[0]
    if wanted not in names:
        if not function or (certain and wanted not in imported):
            listed = ", ".join(name for name in names if not name.startswith("_")) or "nothing"
            problem = f"there is no {function}" if function else f"write {file.name}:FUNCTION"
            raise NetworkError(f"--network: {file.name} defines {listed}; {problem}")
        return
    node = names[wanted]
    if isinstance(node, ast.AsyncFunctionDef):
        raise NetworkError(f"--network: {function} in {file.name} is async; expected a plain function")
    if isinstance(node, ast.FunctionDef) and function == wanted and not node.decorator_list:
        if needed := _required(node.args):
            raise NetworkError(
                f"--network: {function} in {file.name} needs {', '.join(needed)}; it is called without "
                "arguments, so give them defaults"
            )


def _required(arguments: ast.arguments) -> list[str]:
    positional = [*arguments.posonlyargs, *arguments.args]
    needed = positional[: len(positional) - len(arguments.defaults)]
    words = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    return [each.arg for each in (*needed, *(word for word, default in words if default is None))]


def _defined(body: list[ast.stmt]) -> tuple[dict[str, ast.stmt], set[str], bool]:
    """What the top of a file defines by name, what it imports, and whether that is certainly all."""
    names: dict[str, ast.stmt] = {}
    imported: set[str] = set()
    certain = True
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names[node.name] = node
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            imported |= {alias.asname or alias.name.split(".", 1)[0] for alias in node.names}
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                names.update({each.id: node for each in ast.walk(target) if isinstance(each, ast.Name)})
        elif not isinstance(node, (ast.Expr, ast.Pass)):
            certain = False  # if, try, for: whatever they define
    return names, imported, certain and "*" not in imported and "__getattr__" not in names
