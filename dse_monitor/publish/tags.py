"""Tags that hold ten events each, which is what TensorBoard keeps of any tag, and their growing steps."""

from __future__ import annotations

EVENTS_PER_TAG = 10  # what both of TensorBoard's loaders keep without being asked


class TagSequence:
    """Which tags and which step each event gets: a new tag begins after ten events, steps always grow.

    Args:
        prefixes: of the tags that one event writes to; the step of a tag's first event completes its name.
    """

    def __init__(self, *prefixes: str) -> None:
        self._prefixes = prefixes
        self._step = 0
        self._first = 0
        self._count = EVENTS_PER_TAG

    def continue_after(self, step: int) -> None:
        """Let steps grow over those of an earlier writer, whose tags must not be used again."""
        self._step = max(self._step, step)

    def next(self, seq: int) -> tuple[int, list[str], bool]:
        """Step and tags of the event of a record, and whether they are new tags."""
        self._step = max(seq, self._step + 1)
        first = self._count == EVENTS_PER_TAG
        if first:
            self._first, self._count = self._step, 0
        self._count += 1
        return self._step, [f"{prefix}{self._first}" for prefix in self._prefixes], first
