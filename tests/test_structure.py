"""The architecture as claims: who may import whom, and which modules stay free of torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("dse_monitor", "tb_plugin", "trainers")

# Loaded by the supervisor, the command line or TensorBoard: torch would cost each of them half a gigabyte.
TORCH_FREE = (
    "dse_monitor",
    "dse_monitor.alerts.outbox",
    "dse_monitor.alerts.rules",
    "dse_monitor.alerts.sinks",
    "dse_monitor.alerts.state",
    "dse_monitor.checkpoints",
    "dse_monitor.checkpoints.archive",
    "dse_monitor.checkpoints.layouts",
    "dse_monitor.checkpoints.names",
    "dse_monitor.cli",
    "dse_monitor.demo",
    "dse_monitor.errors",
    "dse_monitor.images",
    "dse_monitor.metric",
    "dse_monitor.metric.components",
    "dse_monitor.publish.best",
    "dse_monitor.publish.events",
    "dse_monitor.publish.state",
    "dse_monitor.record",
    "dse_monitor.replay",
    "dse_monitor.scenes",
    "dse_monitor.series",
    "dse_monitor.watch.ledger",
    "dse_monitor.watch.monitor",
    "dse_monitor.watch.scanner",
    "dse_monitor.watch.settle",
    "tb_plugin.data",
    "tb_plugin.loader",
    "tb_plugin.plugin",
    "trainers.methods",
)

# A module (by longest matching prefix) may import from these places of the project and no others.
MAY_IMPORT = {
    "dse_monitor.metric": ("dse_monitor.metric",),
    "dse_monitor.errors": ("dse_monitor.metric.components",),
    "dse_monitor.record": ("dse_monitor.metric.components",),
    "dse_monitor.scenes": ("dse_monitor.errors",),
    "dse_monitor.series": ("dse_monitor.record",),
    "dse_monitor.history": ("dse_monitor.metric.components", "dse_monitor.record", "dse_monitor.series"),
    "dse_monitor.images": ("dse_monitor.errors",),
    "dse_monitor.maps": ("dse_monitor.errors",),
    "dse_monitor.encoder": ("dse_monitor.errors", "dse_monitor.record"),
    "dse_monitor.checkpoints": (
        "dse_monitor.checkpoints",
        "dse_monitor.encoder",
        "dse_monitor.errors",
        "dse_monitor.record",
    ),
    "dse_monitor.publish": (
        "dse_monitor.errors",
        "dse_monitor.history",
        "dse_monitor.metric.components",
        "dse_monitor.publish",
        "dse_monitor.record",
        "dse_monitor.series",
        "dse_monitor.selection",
    ),
    "dse_monitor.alerts": (
        "dse_monitor.alerts",
        "dse_monitor.errors",
        "dse_monitor.history",
        "dse_monitor.record",
        "dse_monitor.selection",
        "dse_monitor.series",
    ),
    "tb_plugin": ("dse_monitor.errors", "dse_monitor.record", "dse_monitor.series", "tb_plugin"),
    "trainers": ("dse_monitor.metric", "dse_monitor.scenes", "trainers"),
}


def _modules() -> dict[str, Path]:
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            if "node_modules" in path.parts or path.name == "hatch_build.py":
                continue
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def _imports(path: Path, known: dict[str, Path]) -> set[str]:
    """Modules of this project that a file imports anywhere, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            while name and name not in known:
                name = name.rpartition(".")[0]
            if name.split(".")[0] in PACKAGES:
                found.add(name)
    return found


def _rule(module: str) -> tuple[str, ...] | None:
    matches = [name for name in MAY_IMPORT if module == name or module.startswith(name + ".")]
    return MAY_IMPORT[max(matches, key=len)] if matches else None


@pytest.mark.parametrize("module", TORCH_FREE)
def test_module_loads_no_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{module} loads torch\n{done.stderr}"


def test_imports_point_one_way():
    known = _modules()
    wrong = []
    for module, path in known.items():
        allowed = _rule(module)
        if allowed is None:
            continue
        wrong += [
            f"{module} imports {name}"
            for name in sorted(_imports(path, known))
            if name not in ("dse_monitor", module)
            and not any(name == place or name.startswith(place + ".") for place in allowed)
        ]
    assert not wrong, "\n".join(wrong)


def test_nothing_imports_the_command_line():
    known = _modules()
    importers = {module for module, path in known.items() if "dse_monitor.cli" in _imports(path, known)}
    assert importers <= {"dse_monitor.__main__"}
