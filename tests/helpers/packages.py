"""Installed packages for tests of plugins: what an installer leaves on the module search path."""

import sys
from pathlib import Path


class Packages:
    """Packages in a folder that is on the search path until the test ends.

    Args:
        folder: an empty folder.
        monkeypatch: of the test.
    """

    def __init__(self, folder: Path, monkeypatch):
        from dse_monitor import plugins

        self.folder, self._modules = folder, set()
        monkeypatch.syspath_prepend(str(folder))
        self._forget = plugins.entry_points.cache_clear
        self._forget()

    def add(self, name: str, entry_points: str, version: str = "1.0", **modules: str) -> None:
        """Install a package: the text of its entry_points.txt, and its modules' sources by name."""
        self.declare(self.folder, name, entry_points, version)
        for module, source in modules.items():
            self._modules.add(module)
            (self.folder / f"{module}.py").write_text(source, encoding="utf-8")
        self._forget()

    @staticmethod
    def declare(folder: Path, name: str, entry_points: str, version: str = "1.0") -> None:
        """Only what says that a package is installed."""
        about = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        about.mkdir(parents=True)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (about / "entry_points.txt").write_text(entry_points)

    def close(self) -> None:
        """Forget the packages and their modules."""
        self._forget()
        for module in self._modules:
            sys.modules.pop(module, None)
