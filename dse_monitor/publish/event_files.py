"""Event files on the disk: their names, appending whole events, and replacing all of a folder by one."""

# pyright: reportAttributeAccessIssue=false
# (tensorboard's generated protocol modules make their classes at run time)

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from tensorboard.compat.proto.event_pb2 import Event

from dse_monitor import atomic
from dse_monitor.errors import OutputError
from dse_monitor.publish import frames


class EventFile:
    """One new file of framed events; a failed append leaves what was there before.

    Args:
        path: of the file; its folder is made if missing.
        now: seconds since 1970, for its first event.

    Raises:
        OSError: it exists, or cannot be written.
    """

    def __init__(self, path: Path, now: float) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._size = 0
        self._file: IO[bytes] = open(path, "xb")
        self.append([Event(wall_time=now, file_version="brain.Event:2").SerializeToString()])

    def append(self, events: list[bytes]) -> None:
        """Write serialised events, all of them or none.

        Raises:
            OSError: they could not be written; the file is closed.
        """
        try:
            for event in events:
                self._file.write(frames.frame(event))
            self._file.flush()
        except OSError:
            self.close()
            with contextlib.suppress(OSError):
                os.truncate(self._path, self._size)
                if self._size == 0:
                    self._path.unlink()
            raise
        self._size = self._file.tell()

    def close(self) -> None:
        """Close the file; closing twice does no harm."""
        with contextlib.suppress(OSError):  # bytes that a failed flush left behind fail again
            self._file.close()


@contextlib.contextmanager
def replacing_files(folder: Path) -> Iterator[tuple[Path, Path]]:
    """A path to write event data to, and the name it gets, once whole, in place of all that was there.

    Raises:
        OutputError: it could not be written; the old files are untouched.
    """
    target = event_path(folder, time.time())
    try:
        with atomic.replacing(target, name="rebuilding") as draft:  # TensorBoard reads all named as events
            yield draft, target
            old = event_files(folder)
        for path in old:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: event data cannot be rebuilt ({error.strerror or error}).") from error


_files_opened = itertools.count()


def event_path(folder: Path, now: float) -> Path:
    """The name of a new event file; no two calls give the same."""
    name = f"events.out.tfevents.{int(now):010d}.{socket.gethostname()}.{os.getpid()}.{next(_files_opened)}"
    return folder / name


def event_files(folder: Path) -> list[Path]:
    """The event files of a folder, in the order in which TensorBoard reads them."""
    return sorted(Path(folder).glob("events.out.tfevents.*"))
