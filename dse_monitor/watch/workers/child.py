"""The watcher's end of a worker: start it, send jobs, collect answers, end it. Never blocks."""

from __future__ import annotations

import contextlib
import enum
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any, Protocol, cast

from dse_monitor.watch.workers.worker import WorkerLimits

TAIL_BYTES = 4000  # of the worker's stderr, kept to say why it died
STOP_SECONDS = 1.0  # s a worker gets to end by itself
ANSWER_LIMIT = 64 << 20  # bytes of one answer; a worker that writes more without a newline is broken


class EndKind(enum.Enum):
    """The ways in which a worker can end that nobody asked to end."""

    EXIT = "it exited by itself, with any code"
    SIGNAL = "a signal ended it"
    SILENCE = "it said nothing for too long"
    BROKEN_PROTOCOL = "what it wrote is not an answer"


@dataclass(frozen=True)
class WorkerEnd:
    """How a worker ended.

    Attributes:
        kind: the way.
        words: the same for people, in one line, with what the worker complained of.
    """

    kind: EndKind
    words: str

    @property
    def by_itself(self) -> bool:
        """Whether the process chose to end: before its first word, that is a worker that cannot start."""
        return self.kind is EndKind.EXIT

    @classmethod
    def of_process(cls, code: int, tail: bytes) -> WorkerEnd:
        """The end of a process.

        Args:
            code: its exit code; the negative number of a signal that ended it.
            tail: the last of what it wrote to standard error.
        """
        lines = [line for line in tail.decode(errors="replace").splitlines() if line.strip()]
        last = f": {lines[-1].strip()[:300]}" if lines else ""
        if code >= 0:
            return cls(EndKind.EXIT, f"the worker ended with code {code}{last}")
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        hint = " (out of memory?)" if -code == signal.SIGKILL else ""
        return cls(EndKind.SIGNAL, f"the worker was ended by {name}{hint}{last}")

    @classmethod
    def silent(cls, seconds: float) -> WorkerEnd:
        """The end of a worker that was given up after so many seconds without a word."""
        return cls(EndKind.SILENCE, f"the worker said nothing for {seconds:.0f} s")


class Worker(Protocol):
    """What the watcher needs of a worker."""

    def send(self, job: dict[str, Any]) -> None:
        """Hand over a job."""
        ...

    def prepare(self, order: dict[str, Any]) -> None:
        """Have it get ready for jobs that will come; there is no answer."""
        ...

    def receive(self) -> list[dict[str, Any]]:
        """Answers that have arrived since the last call."""
        ...

    def descriptors(self) -> list[int]:
        """File descriptors that become readable when something arrives."""
        ...

    def ended(self) -> WorkerEnd | None:
        """How the worker came to its end; None while it lives."""
        ...

    def stop(self, *, kill: bool = False) -> None:
        """End the process and everything it started."""
        ...


def command(limits: WorkerLimits) -> list[str]:
    """The command line of a worker; modules are looked for where this process looks for them."""
    safe = ["-P"] if getattr(sys.flags, "safe_path", False) else []  # since Python 3.11
    return [sys.executable, *safe, "-m", "dse_monitor.watch.workers.worker", json.dumps(limits.to_json())]


class WorkerProcess:
    """A worker as a child process with a process group of its own."""

    def __init__(self, arguments: Sequence[str], environment: dict[str, str] | None = None):
        self._process = subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
            bufsize=0,
        )
        streams = (self._process.stdin, self._process.stdout, self._process.stderr)
        self._input, self._output, self._errors = (cast(IO[bytes], stream) for stream in streams)
        for stream in (self._output, self._errors):
            os.set_blocking(stream.fileno(), False)
        self._partial = b""
        self._tail = b""
        self._broken: WorkerEnd | None = None

    @classmethod
    def with_limits(cls, limits: WorkerLimits) -> WorkerProcess:
        """Start a worker that keeps to limits."""
        return cls(command(limits), limits.environment())

    @property
    def pid(self) -> int:
        """Process id, also of the process group."""
        return self._process.pid

    def send(self, job: dict[str, Any]) -> None:
        """Hand over a job; a dead worker is noticed by :meth:`ended`."""
        self._write(job)

    def prepare(self, order: dict[str, Any]) -> None:
        """Have it get ready for jobs that will come; there is no answer."""
        self._write(order)

    def _write(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError, ValueError):  # closed by either side
            self._input.write(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]]:
        """Answers that have arrived since the last call."""
        self._tail = (self._tail + _drain(self._errors.fileno()))[-TAIL_BYTES:]
        self._partial += _drain(self._output.fileno())
        *lines, self._partial = self._partial.split(b"\n")
        if len(self._partial) > ANSWER_LIMIT:
            self._kill()
            self._partial = b""
            words = f"the worker wrote more than {ANSWER_LIMIT:,} bytes in one line; it was ended"
            self._broken = WorkerEnd(EndKind.BROKEN_PROTOCOL, words)
        answers = []
        for line in lines:
            with contextlib.suppress(ValueError):
                answer = json.loads(line)
                if isinstance(answer, dict):
                    answers.append(answer)
        return answers

    def descriptors(self) -> list[int]:
        """File descriptors that become readable when something arrives."""
        return [self._output.fileno(), self._errors.fileno()]

    def ended(self) -> WorkerEnd | None:
        """How the process came to its end; None while it lives."""
        if self._broken is not None:
            return self._broken
        code = self._process.poll()
        if code is None:
            return None
        if not self._errors.closed:
            self._tail = (self._tail + _drain(self._errors.fileno()))[-TAIL_BYTES:]
        return WorkerEnd.of_process(code, self._tail)

    def stop(self, *, kill: bool = False) -> None:
        """Close its input and wait a moment, then kill the whole group."""
        with contextlib.suppress(OSError):
            self._input.close()
        if not kill:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
        self._kill()
        self._process.wait()
        for stream in (self._output, self._errors):
            with contextlib.suppress(OSError):
                stream.close()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)


def _drain(descriptor: int) -> bytes:
    parts = []
    with contextlib.suppress(BlockingIOError, OSError):
        while part := os.read(descriptor, 65536):
            parts.append(part)
    return b"".join(parts)
