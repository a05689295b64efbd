"""A run's records for other programs: CSV and JSON.

Columns of the CSV, one row per evaluation in the order of recording; empty where there is no value:
    seq, status, path, aliases (separated by ;), epoch, step, dse, dse_se, lam, separability, m_inter,
    m_intra_image, m_intra_batch, m_dim, separability_se, m_inter_se, m_intra_image_se, m_intra_batch_se,
    m_dim_se, images, tokens, width, settings (fingerprint), layout, encoder, arch, content, size, mtime,
    wall_time, seconds, reason, error, one column per companion metric, and, if the run was probed with
    labels, miou_linear, miou_linear_std, miou_knn and miou_knn_std. `lam` is the adaptive lambda of
    the rows under the newest settings and 1 for all others, and `dse` is at `lam`.
    Where epochs alone do not order the run (order.py), or something scored under the newest settings does not
    count: axis and at (the position on it, empty for what is not on the line), and aside (`replaced`: an
        older
    version of a file; `merged`: the weights of another name; `untrained`: on the line, but no part of lambda
    and best).
"""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dse_monitor import atomic
from dse_monitor.errors import OutputError
from dse_monitor.runs import ledger, probed
from dse_monitor.runs.record import Evaluation, Source, to_json
from dse_monitor.runs.series import Series

_ERRORS = ("separability_se", "m_inter_se", "m_intra_image_se", "m_intra_batch_se", "m_dim_se")
_TERMS = ("separability", "m_inter", "m_intra_image", "m_intra_batch", "m_dim")
_COUNTS = ("images", "tokens", "width")


def rows(folder: Path, evaluations: Sequence[Evaluation] | None = None) -> list[dict[str, Any]]:
    """The records of an output folder as flat rows; None where there is no value.

    Args:
        folder: the run's output folder.
        evaluations: the records, if they were read already.

    Raises:
        RunError: there is no ledger, or it cannot be read.
    """
    if evaluations is None:
        evaluations = ledger.read(folder).evaluations
    line = Series.from_evaluations(evaluations)
    current = line.evaluations[-1].settings if len(line) else None
    probes = {item.seq: item.numbers for item in probed.read(folder)}
    beside = {e.seq: {**e.companions, **probes.get(e.seq, {})} for e in evaluations}
    names = sorted({name for evaluation in evaluations for name in evaluation.companions})
    names += probed.NUMBERS if probes else ()
    table = [_row(e, line.lam if e.settings == current else 1.0, beside[e.seq], names) for e in evaluations]
    at = {e.seq: k for k, e in enumerate(line.evaluations)}
    epochs = [e.source.epoch for e in line.evaluations]
    if line.axis != "epoch" or line.aside or line.untrained.any() or epochs != line.x.tolist():
        for evaluation, row in zip(evaluations, table, strict=True):
            index = at.get(evaluation.seq)
            untrained = index is not None and line.untrained[index]
            row["axis"] = line.axis
            row["at"] = None if index is None else float(line.x[index])
            row["aside"] = "untrained" if untrained else line.aside.get(evaluation.seq)
    return table


def write_csv(folder: Path, path: Path | None) -> None:
    """Write the rows as CSV; to standard output if ``path`` is None.

    Raises:
        RunError: there is no ledger, or it cannot be read.
        OutputError: the file cannot be written.
    """
    table = rows(folder)
    text = io.StringIO()
    columns = list(table[0]) if table else list(_row(_EMPTY, 1.0, {}, []))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    _write(path, text.getvalue())


def write_json(folder: Path, path: Path | None) -> None:
    """Write one JSON object per line, with all fields of the records; to standard output if ``path`` is None.

    Raises:
        RunError: there is no ledger, or it cannot be read.
        OutputError: the file cannot be written.
    """
    lines = [json.dumps(to_json(e), allow_nan=False) for e in ledger.read(folder).evaluations]
    _write(path, "".join(line + "\n" for line in lines))


_EMPTY = Evaluation(status="failed", source=Source(path=""))


def _row(evaluation: Evaluation, lam: float, beside: dict[str, float], names: list[str]) -> dict[str, Any]:
    source, parts = evaluation.source, evaluation.components
    values: dict[str, Any] = {
        "seq": evaluation.seq,
        "status": evaluation.status,
        "path": source.path,
        "aliases": ";".join(source.aliases),
        "epoch": source.epoch,
        "step": source.step,
        "dse": parts.dse(lam) if parts else None,
        "dse_se": parts.dse_se(lam) if parts else None,
        "lam": lam if parts else None,
        **{name: getattr(parts, name) if parts else None for name in (*_TERMS, *_ERRORS, *_COUNTS)},
        "settings": evaluation.settings.fingerprint if evaluation.settings else None,
        "layout": source.layout,
        "encoder": source.encoder,
        "arch": source.arch,
        "content": source.content,
        "size": source.size,
        "mtime": source.mtime,
        "wall_time": evaluation.wall_time,
        "seconds": evaluation.seconds.get("total"),
        "reason": evaluation.reason,
        "error": evaluation.error,
        **{name: beside.get(name) for name in names},
    }
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }


def _write(path: Path | None, text: str) -> None:
    if path is None:
        sys.stdout.write(text)
        return
    target = Path(path).resolve()  # a link stays a link
    try:
        if target.exists() and not target.is_file():  # a device or a pipe is written to, never replaced
            target.write_text(text, encoding="utf-8")
        else:
            atomic.write_text(target, text)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error
