"""What a run says while it goes on: TensorBoard scalars, a bar per epoch, a line that stays."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.tensorboard.writer import SummaryWriter

from dse_monitor.trainers import distributed


class Means:
    """Running means of scalars that stay on their device: only :meth:`take` synchronises."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor, int]] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """One more observation of each."""
        for name, value in values.items():
            total, count = self._sums.get(name, (torch.zeros((), device=value.device), 0))
            self._sums[name] = total + value.detach(), count + 1

    def take(self) -> dict[str, Tensor]:
        """The means since the last call, as scalars on their devices."""
        means = {name: total / count for name, (total, count) in self._sums.items()}
        self._sums.clear()
        return means


class Report:
    """Logs of the first process; other processes get a silent one.

    Args:
        out: folder of the event file.
        first_step: optimiser steps done; events beyond them, left by a run that died, are hidden.
        silent: write and print nothing.
    """

    def __init__(self, out: Path, first_step: int, *, silent: bool) -> None:
        self.console = Console(quiet=silent)
        purge = first_step + 1 if first_step else None
        self._writer = None if silent else SummaryWriter(str(out), purge_step=purge)
        self._bar: Progress | None = None
        self._means = Means()
        self._start = time.perf_counter()
        self._step = 0

    def say(self, text: str) -> None:
        """One line, never wrapped; brackets stay, bytes of a path that are no text are escaped."""
        console = self._bar.console if self._bar else self.console
        text = text.encode("utf-8", "backslashreplace").decode()
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    def begin_epoch(self, title: str, steps: int, first_step: int) -> None:
        """Start the bar of an epoch of so many steps; without a terminal nothing is drawn."""
        self._start, self._step = time.perf_counter(), first_step
        if self.console.is_terminal and self._writer:
            words = TextColumn("{task.fields[words]}")
            columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), words, TimeRemainingColumn())
            self._bar = Progress(*columns, console=self.console, transient=True)
            self._bar.add_task("", total=steps, completed=first_step, words="")
            self._bar.start()

    def advance(self, values: Mapping[str, Tensor]) -> None:
        """One step done, with what it measured."""
        self._means.add(values)
        self._step += 1
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=self._step)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Scalars by tag, after ``step`` optimiser steps."""
        if self._writer:
            for tag, value in scalars.items():
                self._writer.add_scalar(tag, value, step)
        if self._bar:
            self._bar.update(self._bar.task_ids[0], words=_words(scalars))

    def end_epoch(self, title: str, images: int) -> None:
        """Close the bar and leave one line: mean loss, DSE if measured, speed, seconds.

        A collective: every process must call it.
        """
        self._stop_bar()
        seconds = time.perf_counter() - self._start
        taken = distributed.means_over_processes(self._means.take())
        means = {f"train/{name}": value.item() for name, value in taken.items()}
        means["train/images_per_second"] = images / seconds
        self.say(f"{title}  {_words(means)}  {seconds:.1f} s")
        if self._writer:
            self._writer.flush()

    def close(self) -> None:
        """Close the bar and the event file."""
        self._stop_bar()
        if self._writer:
            self._writer.close()

    def _stop_bar(self) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None


def _words(scalars: Mapping[str, float]) -> str:
    parts = (("loss", "train/loss", ".4f"), ("DSE", "train/dse", "+.4f"))
    words = [f"{word} {scalars[tag]:{form}}" for word, tag, form in parts if tag in scalars]
    if "train/images_per_second" in scalars:
        words.append(f"{scalars['train/images_per_second']:.0f} images/s")
    return "  ".join(words)
