"""Alerts to a web address, such as a chat room's: the sink ``webhook:env:NAME``."""

from __future__ import annotations

import http.client
import json
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from email.utils import parsedate_to_datetime
from typing import Any

from dse_monitor.alerts import message
from dse_monitor.alerts.sinks.delivery import Refused, Retry, digest
from dse_monitor.alerts.sinks.secret import read_secret
from dse_monitor.errors import OutputError
from dse_monitor.runs.record import Alert, to_json

TIMEOUT_SECONDS = 10.0  # for each step of the exchange; chosen by us


def chat_body(alert: Alert, link: str = "") -> dict[str, Any]:
    """What a chat room shows (``text``), with the whole alert beside it (``dse``)."""
    return {"text": message.text(alert, link), "dse": to_json(alert)}


@dataclass(frozen=True)
class Webhook:
    """POSTs a JSON body to an address that is known by reference only.

    Redirects are not followed: a redirected POST arrives as a GET without its body, and is lost.

    Attributes:
        name: see :class:`~dse_monitor.alerts.sinks.delivery.Sink`.
        address: ``env:NAME`` or ``file:PATH`` that holds the URL.
        body: makes the JSON.
        link: address of the charts, if there is one.
        timeout_seconds: for each step of the exchange.
        clock: seconds since 1970.
    """

    name: str
    address: str
    body: Callable[[Alert, str], dict[str, Any]] = chat_body
    link: str = ""
    timeout_seconds: float = TIMEOUT_SECONDS
    clock: Callable[[], float] = time.time
    least: str = "warning"

    def __post_init__(self) -> None:
        self._url()

    def __call__(self, alert: Alert) -> None:
        """POST one alert."""
        request = urllib.request.Request(
            self._url(),
            data=json.dumps(self.body(alert, self.link), allow_nan=False).encode(),
            headers={
                "Content-Type": "application/json; charset=utf-8",
                "User-Agent": "dse-monitor",
                "Idempotency-Key": digest(alert.key),
            },
            method="POST",
        )
        try:
            with urllib.request.build_opener(_NoRedirects).open(request, timeout=self.timeout_seconds):
                return
        except urllib.error.HTTPError as error:
            with error:
                raise self._verdict(error.code, error.headers) from None
        except urllib.error.URLError as error:
            raise Retry(_in_words(error.reason)) from None
        except (OSError, http.client.HTTPException) as error:
            raise Retry(_in_words(error)) from None

    def _url(self) -> str:
        url = read_secret(self.address)
        try:
            parts = urllib.parse.urlsplit(url)
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 0) >= 0
        except ValueError:
            good = False
        if not good or not url.isascii() or not url.isprintable() or " " in url:
            raise OutputError(f"{self.address} holds no web address; expected https://...")
        return url

    def _verdict(self, code: int, headers: Message) -> Exception:
        if 300 <= code < 400:
            return Retry(f"HTTP {code}: redirects elsewhere, which is not followed; name the final address")
        if 400 <= code < 500 and code not in (408, 429):
            return Refused(f"HTTP {code} {http.client.responses.get(code, '')}".strip())
        return Retry(f"HTTP {code} {http.client.responses.get(code, '')}".strip(), self._asked(headers))

    def _asked(self, headers: Message) -> float | None:
        """Seconds of Retry-After, which is a number or a date."""
        asked = headers.get("Retry-After", "").strip()
        if asked.isdecimal():
            return float(asked)
        try:
            return max(parsedate_to_datetime(asked).timestamp() - self.clock(), 0.0)
        except (TypeError, ValueError):
            return None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None  # the opener then raises the 3xx as an error


def _in_words(error: object) -> str:
    """An error of the connection without the address, which may be a secret."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS certificate not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason or type(error).__name__}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error).__name__


def make(argument: str, link: str) -> Webhook:
    """The sink ``webhook:env:NAME`` or ``webhook:file:PATH``."""
    return Webhook(f"webhook:{argument}", argument, link=link)
