"""A sink is one file and one line, in the tree or in a package of its own."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dse_monitor.alerts import sinks
from dse_monitor.alerts.book import test_alert as make_alert
from dse_monitor.alerts.sinks import from_spec
from dse_monitor.alerts.sinks.outbox import Outbox
from dse_monitor.alerts.sinks.trial import try_sinks
from dse_monitor.errors import OutputError, PluginError
from dse_monitor.plugins import Registry

pytestmark = pytest.mark.fast

EXAMPLE = Path(__file__).parents[2] / "examples" / "plugin" / "dse_monitor_example" / "lines.py"


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch):
    """What a test installs is not remembered by the process."""
    old = sinks.REGISTRY
    monkeypatch.setattr(sinks, "REGISTRY", Registry(old.group, old.what, old.table, sinks.check))


@pytest.fixture
def install(packages):
    """Installs a package with the sink ``mine`` whose factory has this body."""

    def install_sink(body):
        source = f"class Bare:\n    name = 'mine'\n\n\ndef make(argument, link):\n    {body}\n"
        packages.add("mine", "[dse_monitor.sinks]\nmine = my_sink:make\n", my_sink=source)

    return install_sink


def test_sink_is_added_by_its_file_and_one_line(tmp_path, monkeypatch):
    shutil.copy(EXAMPLE, tmp_path)
    monkeypatch.setattr(sinks, "__path__", [*sinks.__path__, str(tmp_path)])
    line = {"lines": "dse_monitor.alerts.sinks.lines:make"}
    monkeypatch.setattr(sinks.REGISTRY, "table", {**sinks.REGISTRY.table, **line})
    sink = from_spec(f"lines:{tmp_path / 'alerts.jsonl'}", "http://charts")
    del sys.modules["dse_monitor.alerts.sinks.lines"]
    outbox = Outbox([sink], record=lambda fact: None, threads=False)
    outbox.submit(make_alert("exp1", now=1.0))
    assert outbox.deliver_due() is None
    (written,) = map(json.loads, (tmp_path / "alerts.jsonl").read_text().splitlines())
    assert (written["run"], written["kind"], written["link"]) == ("exp1", "test", "http://charts")


def test_sink_of_a_package_is_made_from_what_stands_behind_the_colon(packages, tmp_path):
    source = EXAMPLE.read_text(encoding="utf-8")
    packages.add("mine", "[dse_monitor.sinks]\nlines = my_lines:make\n", my_lines=source)
    sink = from_spec(f"lines:{tmp_path}/a:b")
    assert sink.name == f"lines:{tmp_path}/a:b"
    assert from_spec(f"lines:{tmp_path}/a:b").name == sink.name
    with pytest.raises(OutputError, match="expected lines:PATH"):
        from_spec("lines:/nowhere/at/all")
    with pytest.raises(OutputError, match="there are log, command, webhook, alertmanager, email, lines"):
        from_spec("line:x")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("return None", r"sink 'mine' of mine 1\.0 breaks the contract: expected a Sink .* found NoneType"),
        ("return Bare()", r"breaks the contract: expected a Sink"),
        ("raise ValueError('s3cret')", r"sink 'mine' of mine 1\.0 cannot be made: ValueError"),
    ],
)
def test_factory_of_a_package_that_fails_is_named(install, body, reason):
    install(body)
    with pytest.raises(PluginError, match=reason) as caught:
        from_spec("mine:x")
    assert "s3cret" not in str(caught.value)


def test_severity_of_a_sink_must_be_one_that_alerts_have(install):
    install("Bare.__call__ = print; Bare.least = 'loud'; return Bare()")
    with pytest.raises(PluginError, match="least must be one of info, warning, critical, found 'loud'"):
        from_spec("mine")


def test_package_that_gives_no_factory_is_refused(packages):
    packages.add("mine", "[dse_monitor.sinks]\nmine = my_sink:make\n", my_sink="make = 3\n")
    with pytest.raises(PluginError, match=r"breaks the contract: expected a factory .* found 3"):
        from_spec("mine:x")


def test_broken_package_stops_no_watcher_that_does_not_ask_for_it(packages, caplog):
    packages.add("mine", "[dse_monitor.sinks]\nmine = my_sink:make\n", my_sink="import not_to_be_found\n")
    assert from_spec("log").name == "log"
    assert "my_sink" not in sys.modules
    assert not caplog.records
    with pytest.raises(PluginError, match="No module named 'not_to_be_found'"):
        from_spec("mine:x")


def test_exception_of_a_foreign_sink_is_an_outcome_of_the_trial():
    @dataclasses.dataclass
    class Broken:
        name: str = "broken"
        least: str = "info"

        def __call__(self, alert):
            raise KeyError("s3cret")

    assert try_sinks(make_alert("exp1", now=1.0), [Broken()]) == {"broken": "KeyError"}


@pytest.mark.parametrize("name", sinks.REGISTRY.names())
def test_module_of_every_sink_can_be_imported_first(name):
    """No sink relies on what another one has imported."""
    code = f"from dse_monitor.alerts.sinks import REGISTRY; assert callable(REGISTRY.load({name!r}))"
    subprocess.run([sys.executable, "-c", code], check=True)
