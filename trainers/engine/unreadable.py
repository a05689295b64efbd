"""The list of image files that could not be read, kept beside a run's checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path


class UnreadableImages:
    """Files that could not be read, each listed once however many processes and runs meet it.

    Args:
        out: the run's folder.
        say: where the first is announced.
    """

    def __init__(self, out: Path, say: Callable[[str], None]) -> None:
        self._listing, self._say = out / "unreadable_images.txt", say
        self._known: set[str] = set()

    def __len__(self) -> int:
        return len(self._known)

    def add(self, unreadable: Sequence[str]) -> None:
        """Take in names of files, known ones among them."""
        if self._known.issuperset(unreadable):
            return
        before: list[str] = []
        if self._listing.exists():  # names of files are bytes, which need not be text
            before = self._listing.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        first, self._known = not self._known, self._known.union(before)
        new = [line for line in dict.fromkeys(unreadable) if line not in self._known]
        with self._listing.open("a", encoding="utf-8", errors="surrogateescape") as file:
            file.writelines(f"{line}\n" for line in new)
        self._known.update(new)
        if first:
            self._say(
                f"skipping an unreadable image ({unreadable[0]}); all are listed in {self._listing} and "
                "counted as train/unreadable_images"
            )
