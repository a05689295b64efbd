"""Alerts to whatever reads the JSON of Alertmanager's webhooks: the sink ``alertmanager:env:NAME``."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from dse_monitor.alerts import message
from dse_monitor.alerts.sinks.delivery import digest, episode
from dse_monitor.alerts.sinks.webhook import Webhook
from dse_monitor.runs.record import Alert, to_json

_NEVER = "0001-01-01T00:00:00Z"  # how Alertmanager writes an end that has not come


def alertmanager_body(alert: Alert, link: str = "") -> dict[str, Any]:
    """Alertmanager's webhook JSON, version 4, with one alert. Alerts of a run form a group."""
    labels = {
        "alertname": f"DSE {alert.kind}",
        "run": alert.run,
        "severity": alert.severity,
        "kind": alert.kind,
        **({"cause": alert.cause} if alert.cause else {}),
    }
    annotations = {"summary": message.title(alert), "description": message.text(alert)}
    when = datetime.fromtimestamp(alert.wall_time, timezone.utc).isoformat().replace("+00:00", "Z")
    resolved = alert.status == "resolved"
    status = "resolved" if resolved else "firing"
    return {
        "version": "4",
        "groupKey": f'{{}}:{{run="{alert.run}"}}',
        "truncatedAlerts": 0,
        "status": status,
        "receiver": "dse-monitor",
        "groupLabels": {"run": alert.run},
        "commonLabels": labels,
        "commonAnnotations": annotations,
        "externalURL": link,
        "alerts": [
            {
                "status": status,
                "labels": labels,
                "annotations": annotations,
                "startsAt": when,
                "endsAt": when if resolved else _NEVER,
                "generatorURL": link,
                "fingerprint": digest(episode(alert)),
            }
        ],
        "dse": to_json(alert),
    }


def make(argument: str, link: str) -> Webhook:
    """The sink ``alertmanager:env:NAME`` or ``alertmanager:file:PATH``."""
    return Webhook(f"alertmanager:{argument}", argument, alertmanager_body, link)
