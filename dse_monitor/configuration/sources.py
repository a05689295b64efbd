"""Where options come from that the command line leaves out, in this order.

1. What the run was watched with before, as its ledger says. How it was measured (the images and all that
   belongs to a number) counts as a whole, so that the run's line goes on, unless --images is given; device,
   alerts and link count one by one.
2. `dse-monitor.toml` beside the run or above it, the nearest first, then the user's own file (see files.py).
3. ``DSE_MONITOR_IMAGES``, for the images.
4. The data path that the training recorded in a checkpoint, for the images. It is the last, as numbers on
   images that are trained on say less.

Records of a run never say what code is run: ``network`` and alerts of the kind ``command:`` are not taken
from them.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dse_monitor.configuration import files, training
from dse_monitor.errors import ConfigurationError, DSEError
from dse_monitor.evaluation.config import EvaluationConfig
from dse_monitor.flags.table import Option
from dse_monitor.runs import ledger
from dse_monitor.runs.record import OUTPUT_FOLDER

VARIABLE = "DSE_MONITOR_IMAGES"
BEFORE = "what the run was watched with before"
MEASURING = "config"  # the field of the options that holds what is measured

Survey = Callable[[Path], Sequence[tuple[Path, str]]]


@dataclass(frozen=True)
class Setting:
    """A value of an option.

    Attributes:
        value: as the option takes it.
        source: where it stands, in words.
    """

    value: Any
    source: str


@dataclass
class Settings:
    """What was found for the options of one or several runs.

    Attributes:
        found: for each option by name, all that was found, the one that holds first.
        notes: what was left out, and why: pairs of that and the reason.
    """

    found: dict[str, list[Setting]] = field(default_factory=dict)
    notes: list[tuple[str, str]] = field(default_factory=list)

    def values(self) -> dict[str, Any]:
        """The values that hold."""
        return {name: settings[0].value for name, settings in self.found.items()}

    def add(self, values: Mapping[str, Any], source: str) -> None:
        """Append what a source says; it counts less than what is there."""
        for name, value in values.items():
            self.found.setdefault(name, []).append(Setting(value, source))


def settings_for(
    runs: Sequence[Path],
    table: Sequence[Option],
    typed: Mapping[str, Any],
    survey: Survey,
    environment: Mapping[str, str] = os.environ,
) -> Settings:
    """What is found for the options of `watch` when it is called for these runs.

    Args:
        runs: folders of runs, or folders that hold runs.
        table: the options there are.
        typed: values of those the command line gives, by name; they are not looked for.
        survey: finds the runs in or below a folder, each with the name of a checkpoint (empty if it has
            none); called only when it is needed.
        environment: variables by name.

    Raises:
        ConfigurationError: a file cannot be used, or options hold for one run that do not for another.
    """
    each = [_Search(run, table, typed, survey, environment, len(runs) > 1).settings() for run in runs]
    together = Settings()
    for settings in each:
        together.notes += [note for note in settings.notes if note not in together.notes]
        for name, found in settings.found.items():
            held = together.found.setdefault(name, found)
            if held[0].value != found[0].value:
                raise _contradiction(name, held[0], found[0])
    return together


@dataclass
class _Search:
    """One run, or one folder that holds runs."""

    run: Path
    table: Sequence[Option]
    typed: Mapping[str, Any]
    survey: Survey
    environment: Mapping[str, str]
    one_of_several: bool

    def settings(self) -> Settings:
        own = Settings()
        for path in files.files(self.run, self.environment):
            own.add(files.read(path, self.table), str(path))
        settings = Settings()
        self._before(settings, self.typed.get("out") or own.values().get("out"))
        for name, found in own.found.items():
            settings.found.setdefault(name, []).extend(found)
        if images := self.environment.get(VARIABLE):
            settings.add({"images": Path(images)}, f"the variable {VARIABLE}")
        if "images" not in settings.found and "images" not in self.typed:
            settings.add(*self._trained_on())
        settings.found = {name: all for name, all in settings.found.items() if name not in self.typed}
        return settings

    def _before(self, settings: Settings, out: Path | None) -> None:
        """Add what the run, or each of those below the folder, was watched with."""
        facts = {str(folder): fact for folder, fact in self._facts(out)}
        measured = [(where, self._measured(fact)) for where, fact in facts.items()]
        first = next(((where, values) for where, values in measured if values), None)
        if first is not None and "images" not in self.typed:
            self._refuse_network(facts)
            for where, values in measured:
                for name in values:
                    if values and values[name] != first[1][name] and name not in self.typed:
                        one, other = (Setting(v[name], f"{BEFORE}, {w}") for w, v in (first, (where, values)))
                        raise _contradiction(name, one, other)
            settings.add(first[1], BEFORE)
        asked = [self._asked(fact, settings) for fact in facts.values()]
        for name in ("device", "alert", "link"):
            values = [values.get(name) for values in asked]
            if values and values[0] is not None and all(value == values[0] for value in values):
                settings.add({name: values[0]}, BEFORE)

    def _facts(self, out: Path | None) -> Iterator[tuple[Path, Mapping[str, Any]]]:
        """Data of the newest fact about a watch, of the run or of each run below the folder."""
        base = None if out is None else out / self.run.name if self.one_of_several else out
        own = ledger.newest(self.run / OUTPUT_FOLDER if base is None else base, "watch")
        if own is not None:
            yield self.run, own.data
        elif "images" not in self.typed and self.run.is_dir():
            for folder, _ in self.survey(self.run):
                below = folder.relative_to(self.run) if folder.is_relative_to(self.run) else folder.name
                home = folder / OUTPUT_FOLDER if base is None else base / below
                if (fact := ledger.newest(home, "watch")) is not None:
                    yield folder, fact.data

    def _measured(self, fact: Mapping[str, Any]) -> dict[str, Any]:
        """How a run was measured, by the options' names."""
        names = {option.path[-1]: option.name for option in self.table if option.path[0] == MEASURING}
        del names["network"]
        probe = fact.get("probe")
        if not isinstance(probe, dict) or "images" not in probe:
            return {}
        try:
            config = EvaluationConfig.from_json({name: probe[name] for name in names if name in probe})
        except (ValueError, TypeError, DSEError):  # not as any version of this program writes it
            return {}
        return {name: getattr(config, key) for key, name in names.items()}

    def _refuse_network(self, facts: Mapping[str, Mapping[str, Any]]) -> None:
        for where, fact in facts.items():
            network = (fact.get("probe") or {}).get("network")
            if network and not self.typed.get("network"):
                raise ConfigurationError(
                    f"{where} was measured on the network of {network}, and records do not say what code is "
                    "run: name it again with --network"
                )

    def _asked(self, fact: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
        """Device, alerts and link of an earlier watch, as far as they are taken from it."""
        asked = fact.get("asked")
        if not isinstance(asked, dict):
            return {}
        values: dict[str, Any] = {}
        if fact.get("host") == socket.gethostname() and _is_texts(asked.get("device")):
            values["device"] = tuple(asked["device"])  # of another machine it would mean another device
        if isinstance(asked.get("link"), str):
            values["link"] = asked["link"]
        if _is_texts(asked.get("alert")):
            sinks = asked["alert"]
            commands = [sink for sink in sinks if sink.startswith("command:")]
            if commands and "alert" not in self.typed:
                note = (f"without alert {' '.join(commands)}", "records, which do not say what is run")
                settings.notes.append(note)
            if kept := tuple(sink for sink in sinks if sink not in commands):
                values["alert"] = kept
        return values

    def _trained_on(self) -> tuple[dict[str, Any], str]:
        for folder, example in self.survey(self.run) if self.run.is_dir() else ():
            found = training.data_path(folder / example) if example else None
            if found is not None:
                name, path = found
                return {"images": path}, f"{name} in {example}; these are training images, not held-out ones"
        return {}, ""


def missing_images(runs: Sequence[Path]) -> ConfigurationError:
    """What is said when nothing says which images are measured."""
    run = Path(os.path.abspath(runs[0]))
    return ConfigurationError(
        f"no images to measure {runs[0]} on: it was not measured before, no configuration file names them, "
        f"{VARIABLE} is not set, and no training recorded a data path that is here. Give --images DIR, or "
        f'write images = "DIR" below a line [{files.TABLE}] in {run.parent / files.NAME}, or set {VARIABLE}'
    )


def in_words(value: Any) -> str:
    """A value as it would be typed."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, str) for each in value)


def _contradiction(name: str, one: Setting, other: Setting) -> ConfigurationError:
    return ConfigurationError(
        f"--{name} is {in_words(one.value)} by {one.source}, but {in_words(other.value)} by {other.source}; "
        f"give --{name}, or watch these runs one by one"
    )
