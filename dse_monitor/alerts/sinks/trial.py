"""One alert to every sink, now and in the foreground: does an address work before it is needed?"""

from __future__ import annotations

from collections.abc import Iterable

from dse_monitor.alerts.sinks.delivery import Refused, Retry, Sink
from dse_monitor.errors import DSEError
from dse_monitor.runs.record import Alert


def try_sinks(alert: Alert, sinks: Iterable[Sink]) -> dict[str, str]:
    """Send an alert to each sink once, whatever severity it asks for.

    Args:
        alert: usually :func:`dse_monitor.alerts.book.test_alert`.
        sinks: where alerts go.

    Returns:
        For each sink's name why it did not take the alert, in one line without secrets; empty if it did.
    """
    outcome = {}
    for sink in sinks:
        try:
            sink(alert)
        except (Retry, Refused, DSEError) as error:
            outcome[sink.name] = str(error)
        except Exception as error:  # of a plugin's sink; its text may hold a secret
            outcome[sink.name] = type(error).__name__
        else:
            outcome[sink.name] = ""
    return outcome
