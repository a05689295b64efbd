"""The architecture as claims: who may import whom, and which modules stay free of torch."""

import ast
import graphlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.fast

ROOT = Path(__file__).resolve().parents[1]

# Loaded by the supervisor, the command line or TensorBoard: torch would cost each of them half a gigabyte.
TORCH_FREE = (
    "dse_monitor",
    "dse_monitor.alerts.book",
    "dse_monitor.alerts.replay",
    "dse_monitor.alerts.rules",
    "dse_monitor.alerts.sinks",
    "dse_monitor.alerts.sinks.outbox",
    "dse_monitor.atomic",
    "dse_monitor.checkpoints",
    "dse_monitor.checkpoints.archive",
    "dse_monitor.checkpoints.families",
    "dse_monitor.checkpoints.families.network",
    "dse_monitor.checkpoints.families.positions",
    "dse_monitor.checkpoints.families.refusals",
    "dse_monitor.checkpoints.families.statedicts",
    "dse_monitor.checkpoints.layouts",
    "dse_monitor.checkpoints.layouts.document",
    "dse_monitor.checkpoints.named.recorded",
    "dse_monitor.checkpoints.named.transformers_networks",
    "dse_monitor.checkpoints.names",
    "dse_monitor.checkpoints.recognition.by_name",
    "dse_monitor.checkpoints.network_code.locate",
    "dse_monitor.checkpoints.network_code.running",
    "dse_monitor.checkpoints.recognition.causes",
    "dse_monitor.checkpoints.recognition.dialects",
    "dse_monitor.checkpoints.recognition.progress",
    "dse_monitor.checkpoints.wrapped",
    "dse_monitor.cli",
    "dse_monitor.cli.demo",
    "dse_monitor.configuration.sources",
    "dse_monitor.checkpoints.inspect",
    "dse_monitor.errors",
    "dse_monitor.flags.completion",
    "dse_monitor.evaluation.images",
    "dse_monitor.metric",
    "dse_monitor.metric.components",
    "dse_monitor.own_network",
    "dse_monitor.plugins",
    "dse_monitor.preprocessing",
    "dse_monitor.publish.best",
    "dse_monitor.publish.events",
    "dse_monitor.publish.rebuild",
    "dse_monitor.publish.state",
    "dse_monitor.reader",
    "dse_monitor.runs",
    "dse_monitor.runs.export",
    "dse_monitor.runs.ledger",
    "dse_monitor.runs.record",
    "dse_monitor.runs.series",
    "dse_monitor.runs.status",
    "dse_monitor.scenes",
    "dse_monitor.tb_plugin.data",
    "dse_monitor.tb_plugin.loader",
    "dse_monitor.tb_plugin.plugin",
    "dse_monitor.trainers.command_line",
    "dse_monitor.trainers.methods",
    "dse_monitor.watch.files.scanner",
    "dse_monitor.watch.files.settle",
    "dse_monitor.watch.monitor",
)

# Every module belongs to the place with the longest name that begins its own, and may import from that place,
# from those named here, and from no others. Places may not lead back to themselves.
BASE = ("errors", "metric.components", "runs.record")
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "flags": (),
    "atomic": (),
    "seeding": (),
    "facts": (),
    "tokens": (),
    "preprocessing": (),
    "own_network": ("preprocessing", "tokens"),
    "metric.components": (),
    "metric": ("metric.components",),
    "errors": ("metric.components",),
    "plugins": ("errors",),
    "scenes": ("atomic", "errors"),
    "runs.record": ("facts", "metric.components", "preprocessing"),
    "runs.order": (),
    "runs": ("atomic", "checkpoints.names", "runs.order", *BASE),
    "encoder": ("facts", "preprocessing", "tokens", *BASE),
    "checkpoints.network_code": ("errors", "plugins"),
    "checkpoints.options": ("checkpoints.network_code", "flags", "preprocessing"),
    "evaluation.config": ("checkpoints.options", "flags", "preprocessing"),
    "evaluation.fingerprints": ("atomic",),
    "checkpoints.names": (),
    "checkpoints.reading": ("errors",),
    "checkpoints.formats": ("checkpoints.reading", "errors"),
    "checkpoints.archive": ("checkpoints.formats", "checkpoints.reading", "errors"),
    # A network's description lies below the dialects, which lie below the families, as these may bring some.
    "checkpoints.wrapped": ("checkpoints.reading",),
    "checkpoints.families.statedicts": ("checkpoints.archive", "checkpoints.reading", "checkpoints.wrapped"),
    "checkpoints.families.network": ("checkpoints.families.statedicts", "errors", "facts", "tokens"),
    "checkpoints.recognition.translations": (
        "checkpoints.families.network",
        "checkpoints.families.statedicts",
    ),
    "checkpoints.recognition.dialects": (
        "checkpoints.families.network",
        "checkpoints.families.statedicts",
        "checkpoints.reading",
        "checkpoints.recognition.translations",
    ),
    "checkpoints.families": (
        "checkpoints.families.network",
        "checkpoints.families.statedicts",
        "checkpoints.recognition.dialects",
        "errors",
        "facts",
        "plugins",
        "tokens",
    ),
    "checkpoints.meta": (),
    "checkpoints.named": (
        "checkpoints.archive",
        "checkpoints.families.network",
        "checkpoints.families.statedicts",
        "checkpoints.meta",
        "checkpoints.reading",
        "checkpoints.recognition.dialects",
        "checkpoints.recognition.translations",
        "errors",
        "facts",
        "preprocessing",
        "tokens",
    ),
    "checkpoints.layouts": (
        "checkpoints.families.statedicts",
        "checkpoints.reading",
        "checkpoints.recognition.dialects",
        "plugins",
    ),
    "checkpoints.recognition": (
        "checkpoints.archive",
        "checkpoints.families",
        "checkpoints.families.network",
        "checkpoints.families.statedicts",
        "checkpoints.layouts",
        "checkpoints.meta",
        "checkpoints.named",
        "checkpoints.names",
        "checkpoints.network_code",
        "checkpoints.options",
        "checkpoints.reading",
        "checkpoints.recognition.dialects",
        "errors",
        "facts",
        "own_network",
        "preprocessing",
        "tokens",
    ),
    "checkpoints": (
        "checkpoints.archive",
        "checkpoints.families.network",
        "checkpoints.layouts",
        "checkpoints.options",
        "checkpoints.reading",
        "checkpoints.recognition",
        "encoder",
        "facts",
        "preprocessing",
        *BASE,
    ),
    "evaluation": (
        "atomic",
        "checkpoints",
        "encoder",
        "evaluation.config",
        "evaluation.fingerprints",
        "facts",
        "metric",
        "preprocessing",
        *BASE,
    ),
    "publish": ("atomic", "runs", "runs.order", *BASE),
    "probe": (
        "checkpoints",
        "checkpoints.options",
        "encoder",
        "evaluation",
        "evaluation.config",
        "flags",
        "metric",
        "preprocessing",
        "publish",
        "runs",
        *BASE,
    ),
    "alerts.message": BASE,
    "alerts.sinks": ("alerts.message", "plugins", *BASE),
    "alerts": ("alerts.message", "flags", "runs", "runs.order", *BASE),
    "configuration": (
        "checkpoints.archive",
        "checkpoints.reading",
        "errors",
        "evaluation.config",
        "flags",
        "runs",
        "runs.record",
    ),
    "watch.workers": ("evaluation", "evaluation.config", "preprocessing", "runs", *BASE),
    "watch.console": BASE,
    "watch.options": (
        "alerts",
        "alerts.sinks",
        "checkpoints.names",
        "evaluation.config",
        "flags",
        "watch.console",
        "watch.workers",
        *BASE,
    ),
    "watch.files": ("atomic", "checkpoints.names", "runs", "watch.options", *BASE),
    "watch.dependencies": (
        "alerts",
        "alerts.sinks",
        "checkpoints.archive",
        "checkpoints.names",
        "publish",
        "runs",
        "runs.record",
        "watch.files",
    ),
    "watch.shards": ("runs", *BASE),
    "watch.run": (
        "alerts",
        "atomic",
        "checkpoints.names",
        "evaluation.config",
        "evaluation.fingerprints",
        "publish",
        "runs",
        "watch.console",
        "watch.dependencies",
        "watch.files",
        "watch.options",
        "watch.shards",
        *BASE,
    ),
    "watch": (
        "runs",
        "watch.console",
        "watch.dependencies",
        "watch.files",
        "watch.options",
        "watch.run",
        "watch.shards",
        "watch.workers",
        *BASE,
    ),
    "reader": ("alerts", "publish", "runs", *BASE),
    "callbacks": ("metric", "metric.components", "seeding"),
    "trainers.backbones": (),
    "trainers.distributed": (),
    "trainers.method": ("trainers.backbones",),
    "trainers.settings": ("flags",),
    "trainers.blocks": ("trainers.backbones", "trainers.distributed", "trainers.method"),
    "trainers.methods": (
        "plugins",
        "trainers.backbones",
        "trainers.blocks",
        "trainers.distributed",
        "trainers.method",
    ),
    "trainers.engine": (
        "metric",
        "scenes",
        "seeding",
        "trainers.backbones",
        "trainers.blocks",
        "trainers.distributed",
        "trainers.method",
        "trainers.settings",
    ),
    "trainers": (
        "errors",
        "flags",
        "trainers.engine",
        "trainers.method",
        "trainers.methods",
        "trainers.settings",
    ),
    "tb_plugin": ("runs", "runs.order", *BASE),
    "cli": (
        "alerts",
        "alerts.sinks",
        "checkpoints",
        "checkpoints.options",
        "checkpoints.archive",
        "checkpoints.layouts",
        "checkpoints.named",
        "configuration",
        "evaluation",
        "evaluation.config",
        "flags",
        "probe",
        "publish",
        "reader",
        "runs",
        "scenes",
        "trainers",
        "trainers.settings",
        "watch",
        "watch.console",
        "watch.dependencies",
        "watch.files",
        "watch.options",
        "watch.run",
        *BASE,
    ),
    "__main__": ("cli",),
}


def _modules() -> dict[str, Path]:
    """Every module by the one name it is imported under."""
    found = {}
    for folder, package in (
        ("dse_monitor", "dse_monitor"),
        ("trainers", "dse_monitor.trainers"),
        ("tb_plugin", "dse_monitor.tb_plugin"),
    ):
        for path in (ROOT / folder).rglob("*.py"):
            if "node_modules" in path.parts:
                continue
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            if parts[:1] in (("trainers",), ("tb_plugin",)):
                continue  # the same files, where rglob follows links
            found[".".join((package, *parts)).removesuffix(".__init__")] = path
    return found


MODULES = _modules()


def _imports(path: Path) -> set[str]:
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
            while name and name not in MODULES:
                name = name.rpartition(".")[0]
            if name:
                found.add(name)
    return found


def _place(module: str) -> str | None:
    name = module.removeprefix("dse_monitor.")
    return max(
        (place for place in MAY_IMPORT if name == place or name.startswith(place + ".")),
        key=len,
        default=None,
    )


def test_torch_free_modules_load_no_torch():
    """One interpreter: modules are taken back between two names, all but those of other projects."""
    code = (
        "import importlib, json, sys\n"
        "bad = []\n"
        f"for name in {TORCH_FREE!r}:\n"
        "    for known in [n for n in sys.modules if n.partition('.')[0] == 'dse_monitor']:\n"
        "        del sys.modules[known]\n"
        "    importlib.import_module(name)\n"
        "    if 'torch' in sys.modules:\n"
        "        bad.append(name)\n"
        "        for known in [n for n in sys.modules if n.partition('.')[0] == 'torch']:\n"
        "            del sys.modules[known]\n"
        "print(json.dumps(bad))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_one_way(module):
    if module == "dse_monitor":
        assert _imports(MODULES[module]) == {
            "dse_monitor.own_network",
            "dse_monitor.reader",
        }  # inside functions
        return
    place = _place(module)
    assert place is not None, f"{module} belongs to no place of MAY_IMPORT"
    allowed = {place, *MAY_IMPORT[place]}
    found = _imports(MODULES[module]) - {"dse_monitor"}
    assert not {f"{name} of {_place(name)}" for name in found if _place(name) not in allowed}


def test_no_place_leads_back_to_itself():
    graphlib.TopologicalSorter(MAY_IMPORT).prepare()  # raises CycleError with the circle


def test_every_licence_is_used():
    """A licence that nobody needs would let a circle come back unseen."""
    used: dict[str, set[str]] = {place: set() for place in MAY_IMPORT}
    for module, path in MODULES.items():
        if module != "dse_monitor":
            used[_place(module)] |= {_place(name) for name in _imports(path) if name != "dse_monitor"}
    idle = {
        place: unused
        for place, allowed in MAY_IMPORT.items()
        if (unused := set(allowed) - used[place] - set(BASE))
    }
    assert not idle
