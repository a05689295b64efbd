"""Probes with labels beside a run's DSE: `dse-monitor probe RUN`.

Every scored checkpoint that is still there is probed once, at the image size DSE was measured at, and what
comes out lies in ``<RUN>/dse/probe/``: a ledger of its own (`records.jsonl`, kind ``probed``), so that a
watcher may be at work meanwhile and a call that was interrupted goes on, and event data for TensorBoard.
`dse-monitor export` and the DSE tab join it to the evaluations by their sequence numbers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from dse_monitor.errors import CheckpointError, FeatureError, NonFiniteFeatures, OutputError, RunError
from dse_monitor.publish import best, rebuild
from dse_monitor.runs import ledger, probed
from dse_monitor.runs.locking import RunLock
from dse_monitor.runs.record import PROBE_FOLDER, Evaluation
from dse_monitor.runs.series import Series

if TYPE_CHECKING:
    from dse_monitor.probe.prober import ProbeConfig, Prober, ProbeResult, Progress

TAG = "dse/probe/"  # of the plain scalars
DRAWN = ("miou_linear", "miou_knn")  # those that the tab and TensorBoard draw


def probe_run(
    output: Path,
    labelled: ProbeConfig,
    progress: Callable[[str], AbstractContextManager[Progress]],
    refused: Callable[[Evaluation, Exception], None],
) -> Generator[tuple[Evaluation, ProbeResult], None, None]:
    """Probe those checkpoints of a run that these labelled images have not seen yet, in training order.

    Args:
        output: the run's output folder.
        labelled: images, masks and options; image size, layout and network are those of the watcher where
            the options leave them open.
        progress: makes the progress of one checkpoint from its name.
        refused: told of each checkpoint that is gone, was overwritten, or cannot be probed.

    Raises:
        RunError: the run was not watched, or somebody probes it at this moment.
        OutputError: the results cannot be written.
        ImagesError: the labelled images cannot be used.
    """
    from dse_monitor.probe.prober import Prober

    view = ledger.read(output)
    watched = next((fact.data["probe"] for fact in reversed(view.facts) if fact.kind == "watch"), {})
    if watched.get("network") and labelled.network is None:  # a folder's records do not say what code is run
        raise RunError(
            f"DSE was measured there on the network of {watched['network']}: name it here as well, with "
            "--network"
        )
    given = {name: getattr(labelled, name) for name in _OF_THE_WATCHER}
    chosen = {name: watched.get(name) if value is None else value for name, value in given.items()}
    prober = Prober(dataclasses.replace(labelled, **chosen))
    series = Series.from_evaluations(view.evaluations)
    lock = RunLock(output / PROBE_FOLDER)
    lock.take()
    try:
        book = ledger.Ledger.open(output / PROBE_FOLDER)
        try:
            known = {(item.seq, item.truth) for item in probed.facts(book)}
            paths = best.readable_files(output, series.evaluations)
            for evaluation, found in zip(series.evaluations, paths, strict=True):
                path = found or output.parent / evaluation.source.path  # a copied run has new times
                assert evaluation.settings is not None  # in a series all were measured
                how = evaluation.settings.preprocessing.at(prober.labelled.image_size)
                with progress(evaluation.source.path) as report:
                    if (evaluation.seq, prober.truth(how, report)) in known:
                        continue
                    try:
                        result = _probe(path, evaluation, prober, report)
                    except (CheckpointError, FeatureError, NonFiniteFeatures, OSError) as error:
                        refused(evaluation, error)
                        continue
                if not book.append("probed", {"seq": evaluation.seq, **result.to_json()}):
                    raise OutputError(f"{book.path} cannot be written: {book.error}")
                yield evaluation, result
        finally:
            book.close()
            publish(output)
    finally:
        lock.release()


def publish(output: Path) -> None:
    """Write the event data of everything probed anew: one file, which takes the place of those before."""
    evaluations = ledger.read(output).evaluations
    by_seq = {evaluation.seq: evaluation for evaluation in evaluations}
    kept = sorted(probed.read(output), key=lambda item: item.seq)
    found = [(by_seq[item.seq], item) for item in kept if item.seq in by_seq]
    if found:
        measured = [(e, item.wall_time, {name: item.numbers[name] for name in DRAWN}) for e, item in found]
        rebuild.rebuild_numbers(output / PROBE_FOLDER, TAG, measured, evaluations)


def summary(output: Path) -> str:
    """What the labels say about choosing by DSE, in a few lines."""
    series = Series.from_evaluations(ledger.read(output).evaluations)
    numbers = {item.seq: item.numbers for item in probed.read(output)}
    at = [k for k, evaluation in enumerate(series.evaluations) if evaluation.seq in numbers]
    if len(at) < 2:
        return f"{len(at)} of {len(series)} checkpoints probed; two are needed to compare"
    found = [numbers[series.evaluations[k].seq] for k in at]
    dse = series.dse[at]
    trained = np.where(series.untrained[at], -math.inf, dse)
    lines = [f"{len(at)} of {len(series)} checkpoints probed        linear mIoU    k-NN mIoU"]
    columns = [np.array([item[name] for item in found]) for name in ("miou_linear", "miou_knn")]
    chosen = {"best by DSE": [int(np.argmax(trained))] * 2, "last": [len(at) - 1] * 2}
    chosen["best of all"] = [int(np.argmax(column)) for column in columns]
    for title, places in chosen.items():
        cells = (
            f"{column[k]:.4f} at {series.x[at[k]]:.10g}" for column, k in zip(columns, places, strict=True)
        )
        lines.append(f"  {title:<28}" + "    ".join(f"{cell:<14}" for cell in cells).rstrip())
    taus = "    ".join(f"{kendall_tau(dse, column):<+14.2f}" for column in columns)
    lines.append(f"  {'Kendall tau with DSE':<28}{taus}".rstrip())
    return "\n".join(lines)


def kendall_tau(a: ArrayLike, b: ArrayLike) -> float:
    """Kendall's tau-b of two vectors, over the places where both are finite; nan if one has no order.

    Kendall 1945, "The treatment of ties in ranking problems". Takes n^2 bytes for vectors of length n.
    """
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    finite = np.isfinite(x) & np.isfinite(y)
    signs = [np.sign(v[:, None] - v[None, :]).astype(np.int8) for v in (x[finite], y[finite])]
    pairs = math.sqrt(np.count_nonzero(signs[0])) * math.sqrt(np.count_nonzero(signs[1]))
    return float(np.sum(signs[0] * signs[1], dtype=np.int64)) / pairs if pairs else math.nan


_OF_THE_WATCHER = ("image_size", "layout", "encoder", "arch", "num_heads", "bands", "scale")


def _probe(path: Path, evaluation: Evaluation, prober: Prober, report: Progress) -> ProbeResult:
    """Probe the file of an evaluation.

    Raises:
        CheckpointError: it is missing, holds other weights by now, or cannot be read.
    """
    result = prober(path, report)
    if result.content != evaluation.source.content:
        raise CheckpointError(
            f"{path} does not hold the weights DSE was measured on: it was overwritten since, or another "
            "network of the file was read (see --encoder)"
        )
    return result
