"""One watcher per run: an advisory lock that the kernel gives back when its holder dies.

flock decides where it works. Some network filesystems have none, or one that other machines do not see: there
the holder's name in the lock file counts as long as its heartbeat (heartbeat.py) is fresh. Freshness is
judged by the times that the disk's own server puts on files, so clocks of two machines need not agree.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

from dse_monitor.errors import OutputError, RunError

NAME = "watch.lock"
FRESH_SECONDS = 120.0  # s after which a heartbeat is old: four intervals of the slowest. Ours
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM)


@dataclass(frozen=True)
class Holder:
    """Who watches.

    Attributes:
        host: name of the machine.
        pid: process id there.
        boot: id of the machine's boot; a pid means nothing after the next one.
        started: start of the process, clock ticks since boot; a pid may be used again.
    """

    host: str
    pid: int
    boot: str = ""
    started: int = 0

    @classmethod
    def me(cls) -> Holder:
        """This process."""
        return cls(socket.gethostname(), os.getpid(), _boot(), _started(os.getpid()))

    @property
    def is_here(self) -> bool:
        """Whether it ran on this machine, in this boot."""
        return self.host == socket.gethostname() and self.boot == _boot()

    @property
    def alive(self) -> bool:
        """Whether the process exists; to be asked only of one that is here."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return _started(self.pid) == self.started or not self.started


class RunLock:
    """Held from :meth:`take` until :meth:`release` or the end of the process."""

    def __init__(self, folder: Path):
        self._path = Path(folder) / NAME
        self._descriptor = -1

    def take(self, *, heartbeat: Path | None = None) -> Holder | None:
        """Take the lock; returns the dead holder it was taken from, if there was one.

        Args:
            heartbeat: file that a holder on another machine rewrites now and then.

        Raises:
            RunError: somebody else watches.
            OutputError: the folder cannot be written.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise OutputError(f"{self._path} cannot be opened: {error.strerror}") from error
        try:
            supported = _flock(descriptor)
            before = read_holder(self._path)
            if supported is False or (before and self._still_there(before, supported, heartbeat)):
                raise RunError(self._refusal(before))
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(asdict(Holder.me())).encode() + b"\n", 0)
        except BaseException as error:
            os.close(descriptor)
            if isinstance(error, OSError):
                raise OutputError(f"{self._path} cannot be written: {error.strerror}") from error
            raise
        self._descriptor = descriptor
        return before if before != Holder.me() else None

    def release(self) -> None:
        """Give the lock back; the file stays, empty."""
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = -1

    def _still_there(self, holder: Holder, supported: bool | None, heartbeat: Path | None) -> bool:
        if holder == Holder.me():
            return False
        if holder.host == socket.gethostname():
            if supported:  # the kernel of this machine says that nobody holds it
                return False
            return holder.is_here and holder.alive
        return heartbeat is not None and _age(heartbeat, self._path.parent) < FRESH_SECONDS

    def _refusal(self, holder: Holder | None) -> str:
        run = self._path.parent
        if holder is None:
            return f"{run} is being watched by another process; end that one first"
        return (
            f"{run} is already being watched by process {holder.pid} on {holder.host}; "
            f"end that one first, or watch another run. "
            f"A holder that died on another machine is taken over after {FRESH_SECONDS:.0f} s"
        )


def read_holder(path: Path) -> Holder | None:
    """Who is named in a lock file; None when it is empty or unreadable."""
    try:
        data = json.loads(path.read_bytes())
        return Holder(str(data["host"]), int(data["pid"]), str(data["boot"]), int(data["started"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _flock(descriptor: int) -> bool | None:
    """True: ours; False: another's; None: this filesystem has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return None
        raise
    return True


def _age(file: Path, folder: Path) -> float:
    """Seconds since a file was written, by the clock of the server that holds both."""
    now = folder / f".now-{os.getpid()}"
    try:
        now.touch()
        return now.stat().st_mtime - file.stat().st_mtime
    except OSError:
        return float("inf")
    finally:
        with contextlib.suppress(OSError):
            now.unlink()


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _started(pid: int) -> int:
    """Start time of a process in clock ticks since boot (proc(5), field 22); 0 where there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[19])
    except (OSError, ValueError, IndexError):
        return 0
