"""The options of every command, word by word: none appears or vanishes unnoticed."""

import subprocess
import sys
from pathlib import Path

import pytest

from dse_monitor.cli import COMMANDS
from dse_monitor.flags.parse import known
from dse_monitor.flags.table import options
from dse_monitor.trainers.settings import TrainOptions

pytestmark = pytest.mark.fast

ROOT = Path(__file__).resolve().parents[2]

RECOGNISING = "image-size layout encoder arch arch-option network num-heads layer mean std interpolation"
MEASURING = (
    "images num-images bands scale preview-bands seed batch group local-clusters global-clusters "
    f"no-normalize precision micro-batch {RECOGNISING}"
)
RULES = (
    "rules.margin rules.threshold rules.sustain rules.recovered rules.warmup rules.early-best rules.worsened "
    "rules.plateau rules.failures rules.stale-seconds rules.remind-seconds rules.per-hour rules.lam"
)
OPTIONS = {
    "watch": "RUN run as-one as-many unit remeasure out device once until-epoch until-step exit-after-idle "
    "every since min-interval keep-best copy-aside poll-seconds settle-seconds gpu-share cpu-fallback "
    f"threads no-maps alert test-alert link plain json {MEASURING} {RULES}",
    "config": "RUN json",
    "runs": "PATH run as-one as-many json",
    "score": f"CKPT device cache threads json {MEASURING}",
    "best": "RUN top json path-only before-alarm",
    "status": "RUN json",
    "silence": "RUN rule during off",
    "replay": f"RUN|CSV json {RULES}",
    "export": "RUN csv json events",
    "probe": "RUN|CKPT labelled images masks num-images bands scale seed splits neighbours ignore device "
    f"precision micro-batch json {RECOGNISING}",
    "inspect": f"CKPT json {RECOGNISING}",
    "layouts": "json",
    "scenes": "DIR count size seed masks",
    "demo": "out no-serve port",
}
TRAIN = (
    "METHOD preset data out scenes seed device precision accumulate workers compile parallel "
    "no-channels-last checkpointing deterministic save-every keep max-steps log-every resume init-from "
    "more-epochs dse-weight dse-every dse-from"
)


def listed(of):
    table = options(of)
    positional = [option.flag for option in table if option.how.positional]
    return sorted([*positional, *(flag.removeprefix("--") for flag in known(table))])


def test_commands_are_these():
    assert list(COMMANDS) == list(OPTIONS)


@pytest.mark.parametrize("name", OPTIONS)
def test_options_are_these(name):
    assert listed(COMMANDS[name].options) == sorted(OPTIONS[name].split())


def test_options_of_training_are_these():
    assert listed(TrainOptions) == sorted(TRAIN.split())


def test_a_watcher_keeps_no_parser_of_options():
    code = "import sys, dse_monitor.watch.process, dse_monitor.watch.monitor; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "dse_monitor.flags" in done.stdout.split()
    assert not {"tyro", "dse_monitor.flags.table", "dse_monitor.cli"} & set(done.stdout.split())


@pytest.mark.parametrize("name", OPTIONS)
def test_no_two_options_have_one_name(name):
    names = [option.name for option in options(COMMANDS[name].options)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("of", [*(command.options for command in COMMANDS.values()), TrainOptions])
def test_every_option_says_what_it_does(of):
    for option in options(of):
        assert option.doc.endswith((".", "..")), option.path
        assert option.how.advanced or len(option.doc) < 400
