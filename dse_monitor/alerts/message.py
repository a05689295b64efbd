"""What an alert says, in words: one line for a list, the whole story, and what one can do about it."""

from __future__ import annotations

import math
import shlex

from dse_monitor.runs.record import Alert

WIDTH = 100  # columns a terminal line may take
# Layouts whose training code has a bundled trainer of the same name.
TRAINERS = frozenset(
    "barlowtwins byol densecl dino esvit ibot ijepa mae mec mocov3 mugs resa simsiam swav vicreg "
    "vicregl".split()
)

_CAUSE = {
    "separability": "loss of separability (clusters move together or widen)",
    "m_dim": "dimensional collapse (m_dim)",
}


def title(alert: Alert) -> str:
    """One short line: the run and what happened."""
    words = {
        ("degradation", "firing"): "dense features are degrading",
        ("degradation", "resolved"): "dense features have recovered",
        ("non-finite", "firing"): "weights or features are not finite or constant",
        ("non-finite", "resolved"): "features are finite again",
        ("health", "firing"): "the watcher needs attention",
        ("health", "resolved"): "watching works again",
        ("plateau", "firing"): "DSE is on a plateau",
        ("plateau", "resolved"): "DSE has left its plateau",
        ("test", "firing"): "this is a test",
    }.get((alert.kind, alert.status), f"{alert.kind} {alert.status}")
    return f"{alert.run or 'run'}: {words}"


def degradation(alert: Alert, *, now: str, best: str, since: str, still: bool = False) -> str:
    """The story of a degradation alert in one or two sentences.

    Args:
        alert: with everything but its message.
        now: where the newest checkpoint stands, in words (see ``Series.place``).
        best: the same of the best.
        since: the same of the one from which the drop is counted.
        still: whether this was said before.
    """
    best = f"the best, {best}{_path(alert)}"
    if alert.status == "resolved":
        return f"DSE at {now} is back near {best}."
    error = f" ± {alert.drop_se:.3g}" if math.isfinite(alert.drop_se) else ""
    story = (
        f"DSE at {now} is {alert.drop:.3g}{error} below {best}; "
        f"{'still ' if still else ''}degraded since {since}."
    )
    if alert.cause in _CAUSE:
        story += f" {alert.shares[alert.cause]:.0%} of the drop is {_CAUSE[alert.cause]}."
    elif alert.cause == "both":
        story += (
            f" {alert.shares['separability']:.0%} of the drop is loss of separability, "
            f"{alert.shares['m_dim']:.0%} dimensional collapse (m_dim)."
        )
    return story


def non_finite(alert: Alert, path: str, reason: str) -> str:
    """The story of an alert on a checkpoint that is not finite or constant.

    Args:
        alert: with everything but its message.
        path: of the newest checkpoint.
        reason: why it cannot be measured, if known.
    """
    if alert.status == "resolved":
        return f"{path} could be measured again."
    return f"{path} cannot be measured: {reason or 'weights or features are not finite or constant'}"


def failures(alert: Alert, path: str, reason: str, streak: int) -> str:
    """The story of an alert on ``streak`` failed checkpoints in a row; the rest as for `non_finite`."""
    if alert.status == "resolved":
        return f"{path} could be measured again."
    return f"{streak} checkpoints in a row could not be measured; the last is {path}: {reason}"


def stale(alert: Alert, path: str, seconds: float) -> str:
    """The story of an alert on a run that has written nothing for so many seconds since ``path``."""
    if alert.status == "resolved":
        return f"A new checkpoint came: {path}."
    hours = seconds / 3600.0
    return f"No new checkpoint for {hours:.1f} hours; the last is {path}. Has the run ended or stopped?"


def plateau(alert: Alert, newest: str, checkpoints: int) -> str:
    """The story of an alert on so many checkpoints without progress; ``newest`` is the last, in words."""
    if alert.status == "resolved":
        return f"DSE moves again at {newest}."
    return f"DSE has made no progress for {checkpoints} checkpoints, up to {newest}."


def advice(alert: Alert) -> list[str]:
    """What one can do, a line each; empty when nothing needs to be done."""
    if alert.status != "firing" or not alert.best_path or alert.kind not in ("degradation", "non-finite"):
        return []
    path = shlex.quote(alert.best_path)
    method = alert.layout if alert.layout in TRAINERS else "METHOD"
    # Its own checkpoints hold the optimiser and the schedules too; of others only the weights are taken.
    epochs = "--more-epochs" if alert.layout == "dse-train" else "--epochs"
    return [
        f"Keep the best checkpoint: {alert.best_path}",
        "Lower the learning rate or shorten the schedule; image-level accuracy may still improve while "
        "dense features get worse.",
        "Or continue from the best checkpoint with the DSE term: "
        f"dse-train {method} --data IMAGES --out NEW_RUN --init-from {path} --dse-weight 0.001 {epochs} 10",
    ]


def text(alert: Alert, link: str = "") -> str:
    """The whole message: title, story, advice and, if there is one, a link."""
    lines = [title(alert), alert.message, *(f"- {line}" for line in advice(alert))]
    return "\n".join(line for line in (*lines, link) if line)


def _path(alert: Alert) -> str:
    return f" ({alert.best_path})" if alert.best_path else ""
