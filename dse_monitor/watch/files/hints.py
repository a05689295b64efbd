"""Change events as hints: they make a scan come early and decide nothing (watchdog; inotify on Linux)."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

from watchdog.events import (
    DirCreatedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileModifiedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer

PATHS_LIMIT = 1000  # paths remembered between two scans; beyond that "something changed" must do

# Our own reads produce opened and closed-without-writing events: they are not asked for.
WANTED: list[type[FileSystemEvent]] = [
    DirCreatedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileModifiedEvent,
    FileMovedEvent,
]


class Hints(FileSystemEventHandler):
    """Collects paths that changed below ``root``. Never trusted to be complete.

    Args:
        root: the run's folder; must exist.
        wake: called (from another thread) when something changed.
        ignore: folder whose changes are our own.
    """

    def __init__(self, root: Path, wake: Callable[[], None], ignore: Path | None = None):
        self._root = root
        self._wake = wake
        self._ignore = os.path.abspath(ignore) + os.sep if ignore is not None else None
        self._mutex = threading.Lock()
        self._paths: set[str] = set()
        self._any = False
        self._observer = Observer()
        self._observer.schedule(self, os.fspath(root), recursive=True, event_filter=WANTED)

    def start(self) -> None:
        """Begin listening.

        Raises:
            OSError: the kernel has no watch left (inotify limits), or the folder is gone.
        """
        self._observer.start()

    @property
    def alive(self) -> bool:
        """Whether events can still arrive."""
        return self._observer.is_alive()

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Note the path and wake the watcher."""
        paths = [os.fsdecode(path) for path in (event.src_path, event.dest_path) if path]
        ours = self._ignore
        if ours is not None and all(os.path.abspath(path).startswith(ours) for path in paths):
            return
        with self._mutex:
            self._any = True
            if len(self._paths) < PATHS_LIMIT:
                self._paths.update(paths)
        self._wake()

    def take(self) -> set[str] | None:
        """Paths (relative to the root) since the last call; None when nothing happened."""
        with self._mutex:
            if not self._any:
                return None
            paths, self._paths, self._any = self._paths, set(), False
        return {os.path.relpath(path, self._root).replace(os.sep, "/") for path in paths}

    def stop(self) -> None:
        """Stop listening and end the thread."""
        self._observer.stop()
        if self._observer.is_alive():
            self._observer.join(2.0)
