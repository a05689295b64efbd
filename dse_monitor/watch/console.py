"""What a watcher says: a header, a line per checkpoint, problems in one line, a live line on a terminal.

The watcher hands over dataclasses; how they look is decided here. Three forms: a terminal (colour, live
line), plain lines (a pipe, or asked for), JSON lines. Nothing is wider than 100 columns.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict, dataclass
from typing import IO, Any, Literal

from dse_monitor.runs.record import finite

WIDTH = 100
LABEL = 10  # columns of a header's label
NAME = 14  # columns of a run's name where several are watched

Form = Literal["auto", "plain", "json"]


@dataclass(frozen=True, kw_only=True)
class Header:
    """One line of the block at the top.

    Attributes:
        label: ``found``, ``run``, ``images``, ``encoder``, ``assumed``, ``device``, ``output``,
            ``options``, ``pictures`` or ``settings``.
        text: what there is to say.
        aside: said after it, further right.
        run: name of the run.
    """

    label: str
    text: str
    aside: str = ""
    run: str = ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One checkpoint that was measured.

    Attributes:
        run: name of the run.
        path: of the checkpoint, relative to the run.
        axis: unit of ``x``: ``epoch``, ``step`` or ``order``.
        x: where the checkpoint stands.
        place: the same in words.
        settled: whether ``lam`` follows from the run. Before that, DSE compares with nothing and is not
            shown.
        dse: DSE at ``lam``.
        dse_se: its standard error.
        delta: DSE less the best before this checkpoint; None for the first.
        separability: first term of DSE.
        m_dim: second term, before lambda.
        lam: lambda used.
        seconds: spent on it.
        best: whether it is the best now.
        mark: a trouble in a few words, empty if there is none.
        story: the trouble in full.
    """

    run: str
    path: str
    axis: str
    x: float
    dse: float
    dse_se: float
    delta: float | None
    separability: float
    m_dim: float
    lam: float
    seconds: float
    place: str = ""
    settled: bool = True
    best: bool = False
    mark: str = ""
    story: str = ""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A checkpoint that could not be measured, or another trouble.

    Attributes:
        run: name of the run.
        path: of the checkpoint; empty if it is about something else.
        reason: what was found, what was expected, what to do.
        kind: equal for troubles that are one and the same; these are counted after the first.
    """

    run: str
    path: str
    reason: str
    kind: str = ""


@dataclass(frozen=True, kw_only=True)
class Notice:
    """Something worth knowing.

    Attributes:
        run: name of the run.
        text: what.
        mark: ``""``, ``"best"`` or ``"warning"``.
    """

    run: str
    text: str
    mark: str = ""


@dataclass(frozen=True, kw_only=True)
class Live:
    """What happens at the moment; replaced by the next one, shown on a terminal only.

    Attributes:
        text: what.
        done: steps done.
        total: of so many; 0 if there is no count.
    """

    text: str
    done: int = 0
    total: int = 0


class Console:
    """Says what the watcher hands over.

    Args:
        stream: where to; standard output if None.
        form: ``auto`` (a terminal if it is one), ``plain`` or ``json``.
        several: whether several runs are watched, so that lines name theirs.
    """

    def __init__(self, stream: IO[str] | None = None, form: Form = "auto", *, several: bool = False):
        self._stream = stream if stream is not None else sys.stdout
        self._json = form == "json"
        self._terminal = form == "auto" and self._stream.isatty()
        self.several = several
        self._axis = ""
        self._after_header = False
        self._problems: dict[tuple[str, str], int] = {}
        self._live: Any = None
        self._rich: Any = None
        if self._terminal:
            from rich.console import Console as RichConsole

            self._rich = RichConsole(file=self._stream, highlight=False, soft_wrap=True)

    @property
    def shows_progress(self) -> bool:
        """Whether a live line is shown, so that it is worth refreshing it."""
        return self._terminal

    def header(self, line: Header) -> None:
        """Say one line of the header."""
        if self._json:
            return self._object("header", line)
        begin = f"{line.label:<{LABEL}}{self._tagged(line.run)}"
        first, *rest = _wrapped(line.text, WIDTH - len(begin))
        lines = [begin + first, *(" " * len(begin) + part for part in rest)]
        if line.aside and len(f"{lines[-1]:<40}   {line.aside}") <= WIDTH:
            lines[-1] = f"{lines[-1]:<40}   {line.aside}"
        elif line.aside:
            lines += [" " * len(begin) + part for part in _wrapped(line.aside, WIDTH - len(begin))]
        for part in lines:
            self._line(part, "dim")
        self._after_header = True
        return None

    def row(self, row: Row) -> None:
        """Say what one checkpoint got."""
        if self._json:
            return self._object("scored", row)
        if self._axis != row.axis or self._after_header:
            self._axis, self._after_header = row.axis, False
            self._line("")
            self._line(self._indent() + heading(row.axis), "dim")
        mark, style = "", ""
        if row.best:
            mark, style = "   ● best", "green"
        elif row.mark:
            mark, style = f"   ▲ {row.mark}", "yellow"
        columns = self._tagged(row.run) + numbers(row)
        if len(columns + mark) > WIDTH:
            self._line(columns, style)
            columns, mark = " " * 8, mark.strip()
        self._line(columns + mark, style)
        if row.story:
            for part in _wrapped(row.story, WIDTH - 8):
                self._line(" " * 8 + part, style)
        return None

    def problem(self, problem: Problem) -> None:
        """Say a trouble; the same one again is counted and said at its 10th, 100th, ... time."""
        key = (problem.run, problem.kind or problem.reason)
        count = self._problems[key] = self._problems.get(key, 0) + 1
        if len(self._problems) > 1000:
            self._problems.pop(next(iter(self._problems)))
        if self._json:
            return self._object("problem", problem, count=count)
        if count > 1 and count not in (10, 100, 1000, 10_000, 100_000):
            return None
        named = not problem.path or problem.reason.startswith(problem.path)
        text = problem.reason if named else f"{problem.path}: {problem.reason}"
        times = f"{count} times now; the last: " if count > 1 else ""
        text = f"▲ {self._tagged(problem.run)}{times}{text}"
        first, *rest = _wrapped(text, WIDTH - 2)
        self._line(first, "yellow")
        for part in rest:
            self._line("  " + part, "yellow")
        return None

    def notice(self, notice: Notice) -> None:
        """Say something worth knowing."""
        if self._json:
            return self._object("notice", notice)
        sign = {"best": "● ", "warning": "▲ "}.get(notice.mark, "")
        style = {"best": "green", "warning": "yellow"}.get(notice.mark, "dim")
        for part in _wrapped(f"{self._tagged(notice.run)}{sign}{notice.text}", WIDTH - 2):
            self._line("  " + part, style)
        return None

    def live(self, live: Live | None) -> None:
        """Show what happens now, on a terminal only; None clears it."""
        if not self._terminal:
            return
        if live is None:
            if self._live is not None:
                self._live.stop()
                self._live = None
            return
        from rich.live import Live as RichLive
        from rich.text import Text

        text = Text(live_text(live), style="dim", no_wrap=True, overflow="ellipsis")
        if self._live is None:
            self._live = RichLive(text, console=self._rich, transient=True, auto_refresh=False)
            self._live.start()
        self._live.update(text, refresh=True)

    def close(self) -> None:
        """Say which troubles came again and clear the live line."""
        self.live(None)
        for (run, _), count in self._problems.items():
            if count > 1 and not self._json:
                self._line(f"  {self._tagged(run)}the same problem came {count} times in all", "dim")
                break

    def _indent(self) -> str:
        return " " * (NAME + 1) if self.several else ""

    def _tagged(self, run: str) -> str:
        if not self.several or not run:
            return self._indent() if self.several else ""
        name = run if len(run) <= NAME else "…" + run[-NAME + 1 :]
        return f"{name:<{NAME}} "

    def _line(self, text: str, style: str = "") -> None:
        text = text.rstrip()
        if self._rich is not None:
            from rich.text import Text

            self._rich.print(Text(text, style=style), soft_wrap=True)
        else:
            self._stream.write(text + "\n")
        self._stream.flush()

    def _object(self, kind: str, data: Any, **more: Any) -> None:
        values = finite(asdict(data))
        if kind == "problem":  # its own kind would hide that of the line
            values["problem"] = values.pop("kind")
        self._stream.write(json.dumps({"kind": kind, **values, **more}) + "\n")
        self._stream.flush()


def heading(axis: str) -> str:
    """Titles of the columns; λ moves as a run grows, and the DSE of earlier rows with it."""
    return f"{axis:>8}{'DSE':>9}{'± err':>7}{'Δ best':>10}{'separability':>15}{'dim':>9}{'λ':>8}{'s':>7}"


def numbers(row: Row) -> str:
    """The columns of one checkpoint."""
    delta = "" if row.delta is None else _short(row.delta, signed=True)
    dse, error, lam = f"{row.dse:.3f}", _short(row.dse_se), f"{row.lam:.3g}"
    if not row.settled:
        dse = error = lam = "–"
        delta = ""
    return (
        f"{_position(row.x):>8}{dse:>9}{error:>7}{delta:>10}"
        f"{row.separability:>15.3f}{row.m_dim:>9.3f}{lam:>8}{row.seconds:>7.1f}"
    )


def live_text(live: Live, width: int = 20) -> str:
    """The live line: what happens, with a bar if there is a count."""
    if not live.total:
        return live.text
    filled = width * min(live.done, live.total) // live.total
    return f"{live.text}  {'━' * filled}{'┄' * (width - filled)}  {live.done:,}/{live.total:,}"


def _short(value: float, *, signed: bool = False) -> str:
    """Three digits after the point, without the zero before it: .004, +.012."""
    if not math.isfinite(value):
        return "–"
    text = f"{value:+.3f}" if signed else f"{value:.3f}"
    return text.replace("0.", ".", 1) if abs(value) < 0.9995 else text


def _position(x: float) -> str:
    return f"{x:.0f}" if float(x).is_integer() else f"{x:.2f}"


def _wrapped(text: str, width: int) -> list[str]:
    """Break at spaces; a word that is too long (a path) is cut."""
    lines: list[str] = []
    line = ""
    for word in text.split(" "):
        while len(word) > width:
            if line:
                lines.append(line)
                line = ""
            lines.append(word[:width])
            word = word[width:]
        if len(line) + len(word) + bool(line) > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}" if line else word
    return [*lines, line]
