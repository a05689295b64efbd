"""A missing or broken part of the tab must not end TensorBoard."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
from tensorboard.backend import application
from tensorboard.plugins import base_plugin

from dse_monitor.tb_plugin.loader import DSELoader

pytestmark = pytest.mark.fast

HEAVY = (
    "numpy",
    "torch",
    "PIL",
    "dse_monitor.runs",
    "dse_monitor.tb_plugin.plugin",
    "dse_monitor.tb_plugin.data",
)


def test_entry_point_imports_with_everything_heavy_blocked():
    script = (
        "import sys\n"
        f"for name in {HEAVY!r}: sys.modules[name] = None\n"
        "from dse_monitor.tb_plugin.loader import DSELoader\n"
        "DSELoader()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_all_evaluations_are_kept_unless_the_user_says_otherwise():
    flags = SimpleNamespace(samples_per_plugin={}, reload_multifile=None, dse_full_scalars=False)
    DSELoader().fix_flags(flags)
    assert flags.samples_per_plugin == {"dse": 0}
    assert flags.reload_multifile is True

    flags = SimpleNamespace(samples_per_plugin={"dse": 5}, reload_multifile=False, dse_full_scalars=True)
    DSELoader().fix_flags(flags)
    assert flags.samples_per_plugin == {"dse": 5, "scalars": 0}
    assert flags.reload_multifile is False


def test_flag_is_parsed():
    import argparse

    parser = argparse.ArgumentParser()
    DSELoader().define_flags(parser)
    assert parser.parse_args([]).dse_full_scalars is False
    assert parser.parse_args(["--dse_full_scalars"]).dse_full_scalars is True


@pytest.mark.parametrize(
    "missing", ["dse_monitor.tb_plugin.plugin", "dse_monitor.tb_plugin.data", "dse_monitor.runs.record"]
)
def test_tensorboard_starts_without_the_tab_when_a_module_is_broken(monkeypatch, missing):
    for name in ("dse_monitor.tb_plugin.plugin", "dse_monitor.tb_plugin.data"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    flags = SimpleNamespace(
        logdir="",
        logdir_spec="",
        path_prefix="",
        samples_per_plugin={},
        purge_orphaned_data=True,
        generic_data="true",
        window_title="",
    )
    provider = SimpleNamespace(list_plugins=lambda ctx, experiment_id: [])
    app = application.TensorBoardWSGIApp(flags, [DSELoader], data_provider=provider)
    assert callable(app)


def test_a_flag_that_another_plugin_took_does_not_end_tensorboard(caplog):
    import argparse

    parser = argparse.ArgumentParser()
    parser.add_argument("--dse_full_scalars")
    DSELoader().define_flags(parser)
    assert "--dse_full_scalars is not available" in caplog.text


def test_flags_of_an_unknown_kind_do_not_end_tensorboard(caplog):
    class Frozen:
        reload_multifile = None
        __slots__ = ()

    DSELoader().fix_flags(Frozen())
    assert "may show a sample" in caplog.text


def test_loader_makes_the_plugin():
    plugin = DSELoader().load(base_plugin.TBContext(flags=None, logdir=""))
    assert plugin.plugin_name == "dse"
    assert plugin.frontend_metadata().tab_name == "DSE"
