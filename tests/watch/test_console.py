"""What the watcher says is aligned, short, and said once."""

import io
import json

import pytest

from dse_monitor.watch.console import Console, Header, Live, Notice, Problem, Row, live_text

pytestmark = pytest.mark.fast


def _row(**changes):
    row = {
        "run": "exp1",
        "path": "checkpoint0089.pth",
        "axis": "epoch",
        "x": 90.0,
        "dse": -0.214,
        "dse_se": 0.004,
    }
    row |= {"delta": 0.012, "separability": -0.861, "m_dim": 0.647, "lam": 1.0, "seconds": 6.1}
    return Row(**{**row, **changes})


@pytest.fixture
def said():
    stream = io.StringIO()

    class Lines:
        console = Console(stream, "plain")

        @property
        def lines(self):
            return stream.getvalue().splitlines()

    return Lines()


def test_checkpoints_stand_in_columns_under_their_titles(said):
    said.console.header(Header(label="run", text="runs/exp1", aside="9 already scored"))
    said.console.row(_row(best=True))
    said.console.row(_row(x=100.0, dse=-0.221, delta=-0.007))
    said.console.row(_row(x=110.0, dse=-0.243, delta=-0.029, mark="pending since 110"))
    assert said.lines == [
        "run       runs/exp1                        9 already scored",
        "",
        "   epoch      DSE  ± err    Δ best   separability      dim       λ      s",
        "      90   -0.214   .004     +.012         -0.861    0.647       1    6.1   ● best",
        "     100   -0.221   .004     -.007         -0.861    0.647       1    6.1",
        "     110   -0.243   .004     -.029         -0.861    0.647       1    6.1   ▲ pending since 110",
    ]


def test_no_line_is_wider_than_a_hundred_columns():
    stream = io.StringIO()
    console = Console(stream, "plain", several=True)
    long = "runs/" + "a-very-long-name-" * 12
    console.header(Header(label="run", text="r" * 60, aside="x" * 20, run="exp1"))
    console.row(_row(run="a-long-name-of-a-run", x=1e6, mark="DEGRADED since 110", story="word " * 60 + long))
    console.row(_row(dse=float("nan"), dse_se=float("nan"), delta=None))
    console.problem(Problem(run="exp1", path=long, reason="no encoder was recognised " * 9))
    console.notice(Notice(run="exp1", text="something " * 30, mark="warning"))
    console.close()
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= 100
    assert any("–" in line for line in lines)


def test_same_problem_is_said_once_and_counted(said):
    for number in range(12):
        said.console.problem(
            Problem(run="exp1", path=f"c{number}.pth", reason=f"c{number}.pth: unknown", kind="U")
        )
    said.console.problem(Problem(run="exp1", path="d.pth", reason="another", kind="V"))
    said.console.close()
    assert said.lines == [
        "▲ c0.pth: unknown",
        "▲ 10 times now; the last: c9.pth: unknown",
        "▲ d.pth: another",
        "  the same problem came 12 times in all",
    ]


def test_lines_name_their_run_where_there_are_several():
    stream = io.StringIO()
    console = Console(stream, "plain", several=True)
    console.row(_row())
    console.notice(Notice(run="exp1", text="gone"))
    assert stream.getvalue().splitlines()[-2].startswith("exp1 ")
    assert stream.getvalue().splitlines()[-1].strip().startswith("exp1 ")


def test_json_lines_are_valid_json_with_a_kind():
    stream = io.StringIO()
    console = Console(stream, "json")
    console.header(Header(label="run", text="runs/exp1"))
    console.row(_row(dse_se=float("nan")))
    console.problem(Problem(run="exp1", path="c.pth", reason="bad", kind="X"))
    console.notice(Notice(run="exp1", text="gone"))
    console.live(Live(text="never seen"))
    console.close()
    objects = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [item["kind"] for item in objects] == ["header", "scored", "problem", "notice"]
    assert objects[1]["dse"] == -0.214
    assert objects[1]["dse_se"] is None
    assert objects[2]["count"] == 1


def test_live_line_shows_on_a_terminal_only(said):
    said.console.live(Live(text="checkpoint0129.pth", done=5, total=10))
    assert said.lines == []
    assert (
        live_text(Live(text="c  forward", done=1024, total=2048), width=4) == "c  forward  ━━┄┄  1,024/2,048"
    )
    assert live_text(Live(text="waiting")) == "waiting"

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    console = Console(stream)
    assert console.shows_progress
    console.live(Live(text="checkpoint0129.pth", done=5, total=10))
    console.row(_row(best=True))
    console.close()
    assert "checkpoint0129.pth" in stream.getvalue()
    assert "● best" in stream.getvalue()
