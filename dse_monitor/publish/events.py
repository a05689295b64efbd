"""Evaluations and alerts as TensorBoard event data, made of tensorboard's own messages; no torch.

Everything lies in ``<RUN>/dse/``, a folder of its own: a second writer in the trainer's folder would make
TensorBoard lose points of one of the two. The files can always be written again from the ledger.

====================  ==============  ===================================================================
tag                   plugin name     content
====================  ==============  ===================================================================
``dse/point/<k>``     ``dse``         float64 [POINT_COLUMNS], one event per evaluation
``dse/meta/<k>``      ``dse``         string [1], JSON: what the point's numbers do not say (`metadata`)
``dse/alert/<k>``     ``dse``         string [1], JSON of an Alert (`record.to_json`)
``dse/map/<seq>``     ``dse``         string [1], PNG: the map of that evaluation; ``images`` for <seq>: the
                                      example images, WebP; thinned on long runs, see publish/pictures.py
``dse/state``         ``dse_state``   string [1], JSON of `publish.state.run_state`; the last one counts
``dse/score`` ...     ``scalars``     float32, for TensorBoard's own Time Series tab; never read back
====================  ==============  ===================================================================

TensorBoard keeps ten events per tag at least, whatever its loader and flags, so a tag holds ten events;
``<k>`` is the sequence number of its first. It also takes a falling step for a restart and forgets what came
before, so the step of an event is the record's sequence number and the optimiser step is part of the payload.
The plain scalars carry the true step (scalar_steps.py) and may be thinned by TensorBoard.
"""

# pyright: reportAttributeAccessIssue=false
# (tensorboard's generated protocol modules make their classes at run time)

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto

from dse_monitor.errors import OutputError
from dse_monitor.publish import encoding, pictures
from dse_monitor.publish.event_files import EventFile, event_path
from dse_monitor.publish.published import published
from dse_monitor.publish.scalar_steps import ScalarSteps
from dse_monitor.publish.tags import TagSequence
from dse_monitor.runs.growing import LambdaOfRun
from dse_monitor.runs.record import (
    PLUGIN_STATE,
    SCALAR_TAGS,
    TAG_ALERT,
    TAG_MAP,
    TAG_META,
    TAG_POINT,
    TAG_STATE,
    Alert,
    Evaluation,
    to_json,
)

PENDING_LIMIT = 500  # events queued before they are written while a folder is brought up to date; ours

_SCALAR_TEXT = {
    SCALAR_TAGS[0]: "DSE with the lambda known when the checkpoint was measured. The DSE tab uses one lambda "
    "for the whole run and is the place to compare checkpoints.",
}


class EventWriter:
    """Appends to one new event file in a folder; opened at the first flush, so that making one cannot fail.

    A failed write raises OutputError once. After that the writer is dead (`alive` is False): it ignores what
    it is given, and what lies in the file stays readable. `reopen` starts a new file and writes what is
    missing. Not for several threads.

    Args:
        folder: the run's output folder; made if missing.
        clock: seconds since 1970.
    """

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.folder = Path(folder)
        self.alive = True
        self._clock = clock
        self._pending: list[bytes] = []
        self._output: EventFile | None = None
        self._reset()

    def _reset(self) -> None:
        self._points = TagSequence(TAG_POINT, TAG_META)
        self._alerts = TagSequence(TAG_ALERT)
        self._state_step = 0
        self._described: set[str] = set()
        self._lambdas: dict[str, LambdaOfRun] = {}
        self._scalar_steps = ScalarSteps()
        self._painted = 0
        self._pictures: set[str] = set()
        self._images = b""

    def add_evaluation(self, evaluation: Evaluation) -> None:
        """Queue the point, its metadata and, if scored, the plain scalars and perhaps its map.

        Raises:
            ValueError: the evaluation has no sequence number yet: the ledger gives it one.
        """
        scalar_step = self._remember(evaluation)
        if not self.alive:
            return
        values = [
            encoding.doubles(encoding.point(evaluation)),
            encoding.json_string(encoding.metadata(evaluation)),
        ]
        self._queue(self._points, evaluation, values)
        self._queue_scalars(evaluation, scalar_step)
        self._queue_map(evaluation)

    def add_alert(self, alert: Alert) -> None:
        """Queue one change of an alert's state.

        Raises:
            ValueError: the alert has no sequence number yet: the ledger gives it one.
        """
        if self.alive:
            self._queue(self._alerts, alert, [encoding.json_string(to_json(alert))])

    def set_state(self, state: dict[str, Any]) -> None:
        """Queue the state of the run (see `publish.state.run_state`); it replaces the one before."""
        if not self.alive:
            return
        now = self._clock()
        self._state_step = max(self._state_step + 1, int(now * 1e6))
        value = Summary.Value(tag=TAG_STATE, tensor=encoding.json_string(state))
        if TAG_STATE not in self._described:
            self._described.add(TAG_STATE)
            value.metadata.CopyFrom(encoding.describe(PLUGIN_STATE, "State of the run and of its watcher."))
        self._append(Event(wall_time=now, step=self._state_step, summary=Summary(value=[value])))

    def catch_up(self, evaluations: Iterable[Evaluation], alerts: Iterable[Alert]) -> int:
        """Queue those records that no event file of the folder holds; returns how many.

        For the start of a watcher (one that was killed may have recorded what it did not publish) and for
        `reopen`. Reads the folder's event files once. Records come in the order of their sequence numbers, so
        that none need be kept.

        Raises:
            OutputError: see `flush`; what is queued does not wait for the last record.
        """
        found = published(self.folder)
        self._points.continue_after(found.last_step)
        self._alerts.continue_after(found.last_step)
        self._pictures |= found.pictures
        missing = 0
        for evaluation in evaluations:
            if evaluation.seq in found.evaluations:
                self._remember(evaluation)
                self._queue_map(evaluation)
            else:
                missing += 1
                self.add_evaluation(evaluation)
            if len(self._pending) >= PENDING_LIMIT:
                self.flush()
        for alert in sorted(alerts, key=lambda record: record.seq):
            if (alert.seq, alert.key) not in found.alerts:
                missing += 1
                self.add_alert(alert)
        return missing

    def reopen(
        self, evaluations: Iterable[Evaluation], alerts: Iterable[Alert], state: dict[str, Any]
    ) -> None:
        """Start a new file with all that the folder lacks; the writer is alive again.

        Raises:
            OutputError: still impossible; the writer stays dead.
        """
        self._drop()
        self._reset()
        self.alive = True
        self.catch_up(evaluations, alerts)
        self.set_state(state)
        self.flush()

    def open_at(self, path: Path) -> None:
        """Write to a new file of this name, which need not be an event file's, from the first flush on.

        Raises:
            OSError: it exists, or cannot be written.
        """
        self._output = EventFile(path, self._clock())

    def flush(self) -> None:
        """Hand everything queued to the operating system, whole events or nothing.

        Raises:
            OutputError: it could not be written; said once, then the writer is dead.
        """
        if not self.alive or not self._pending:
            return
        try:
            if self._output is None:
                self._output = EventFile(event_path(self.folder, self._clock()), self._clock())
            self._output.append(self._pending)
        except OSError as error:
            self._drop()
            self.alive = False
            raise OutputError(
                f"{self.folder}: event data cannot be written ({error.strerror or error}); the ledger keeps "
                "the scores. Free some space or fix the permissions: the missing events are added then."
            ) from error
        self._pending.clear()

    def close(self) -> None:
        """Flush and close the file. A dead writer closes silently."""
        try:
            self.flush()
        finally:
            self._drop()

    def __enter__(self) -> EventWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _drop(self) -> None:
        self._pending.clear()
        if self._output is not None:
            self._output.close()
            self._output = None

    def _append(self, event: Event) -> None:
        self._pending.append(event.SerializeToString())

    def _queue(self, sequence: TagSequence, record: Evaluation | Alert, tensors: list[TensorProto]) -> None:
        if record.seq <= 0:
            raise ValueError(f"sequence number {record.seq}: expected one given by the ledger, above 0")
        step, tags, first = sequence.next(record.seq)
        values = [
            encoding.tab_value(tag, tensor, described=not first)
            for tag, tensor in zip(tags, tensors, strict=True)
        ]
        self._append(Event(wall_time=encoding.event_time(record), step=step, summary=Summary(value=values)))

    def _remember(self, evaluation: Evaluation) -> int:
        """Keep what lambda needs, one per settings; returns the step of the plain scalars, if any."""
        if evaluation.status != "scored" or not evaluation.components or not evaluation.settings:
            return 0
        self._lambdas.setdefault(evaluation.settings.fingerprint, LambdaOfRun()).add(evaluation)
        return self._scalar_steps.next(evaluation)

    def _queue_scalars(self, evaluation: Evaluation, step: int) -> None:
        parts, settings = evaluation.components, evaluation.settings
        if evaluation.status != "scored" or parts is None or settings is None:
            return
        known = self._lambdas[settings.fingerprint]
        numbers = (
            parts.dse(known.value),
            parts.separability,
            parts.m_inter,
            parts.m_intra_image,
            parts.m_intra_batch,
            parts.m_dim,
        )
        values = [
            encoding.scalar_value(tag, number, described=self._described, text=_SCALAR_TEXT.get(tag, ""))
            for tag, number in zip(SCALAR_TAGS, numbers, strict=True)
        ]
        time_made = encoding.event_time(evaluation)
        self._append(Event(wall_time=time_made, step=step, summary=Summary(value=values)))

    def _queue_map(self, evaluation: Evaluation) -> None:
        """Queue the map of an evaluation if it is one of those published, and the images it shows if new."""
        if not evaluation.map_file:
            return
        self._painted += 1
        if not pictures.is_published(self._painted - 1) or str(evaluation.seq) in self._pictures:
            return
        content = pictures.read_picture(self.folder, evaluation.map_file)
        if content:
            self._pictures.add(str(evaluation.seq))
            self._queue_picture(str(evaluation.seq), content, evaluation.seq)
        images = pictures.read_picture(self.folder, pictures.ORIGINALS)
        if images and images != self._images:
            self._images = images
            self._queue_picture(pictures.IMAGES, images, int(self._clock() * 1e6))

    def _queue_picture(self, name: str, content: bytes, step: int) -> None:
        value = encoding.tab_value(TAG_MAP + name, encoding.bytes_string(content), described=False)
        self._append(Event(wall_time=self._clock(), step=step, summary=Summary(value=[value])))
