"""Held-out images that became others under the same names: which scores stand on which of them.

The names, the number and the seed are what a user asks for; what lies under the names is seen once they are
decoded. Scores on other pictures are never compared, so they are on a line of their own (see runs/series.py).
"""

from __future__ import annotations

import dataclasses

from dse_monitor.runs.record import Evaluation, Settings


class Pictures:
    """Counts the checkpoints that were measured on other pictures than the newest.

    Fingerprints of images also differ where they were resized otherwise, for another network in the same run;
    those are told apart by the rest of the settings.
    """

    def __init__(self) -> None:
        self._contents: dict[Settings, dict[str, set[int]]] = {}  # by what else counts, then by images
        self._newest: dict[Settings, str] = {}

    def learn(self, evaluation: Evaluation) -> None:
        """Take in an evaluation of what is asked for now, in the order of recording."""
        settings = evaluation.settings
        if settings is None or evaluation.status != "scored":
            return
        how = dataclasses.replace(settings, images="")
        self._newest[how] = settings.images
        contents = self._contents.setdefault(how, {}).setdefault(settings.images, set())
        contents.add(hash(evaluation.source.content))

    @property
    def others(self) -> int:
        """How many checkpoints have a score on earlier pictures alone."""
        count = 0
        for how, by_images in self._contents.items():
            earlier = [contents for images, contents in by_images.items() if images != self._newest[how]]
            count += len(set[int]().union(*earlier) - by_images[self._newest[how]])
        return count
