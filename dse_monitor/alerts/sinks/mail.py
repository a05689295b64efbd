"""Alerts by e-mail: the sink ``email:env:NAME``.

The account is one address that is known by reference only, as it holds a password.
"""

from __future__ import annotations

import smtplib
import ssl
import urllib.parse
from dataclasses import dataclass
from datetime import datetime, timezone
from email.message import EmailMessage
from email.utils import format_datetime

from dse_monitor.alerts import message
from dse_monitor.alerts.sinks.delivery import Refused, Retry, digest, episode
from dse_monitor.alerts.sinks.secret import read_secret
from dse_monitor.errors import OutputError
from dse_monitor.runs.record import Alert

TIMEOUT_SECONDS = 15.0  # for each step of the exchange; chosen by us
_PORTS = {"smtp": 587, "smtps": 465}


@dataclass(frozen=True)
class _Account:
    scheme: str
    host: str
    port: int
    user: str
    password: str
    sender: str
    recipients: tuple[str, ...]
    starttls: str


@dataclass(frozen=True)
class Mail:
    """Sends an alert to one or more people; the alerts of one episode form a thread.

    Attributes:
        name: see :class:`~dse_monitor.alerts.sinks.delivery.Sink`.
        account: ``env:NAME`` or ``file:PATH`` that holds
            ``smtp[s]://[USER:PASSWORD@]HOST[:PORT]/?from=ADDRESS&to=ADDRESS[,ADDRESS...][&starttls=MODE]``,
            with special characters percent-encoded. ``smtps`` is encrypted from the start; ``smtp``
            upgrades: MODE is ``always`` (the default with a password), ``auto`` (if the server can; the
            default without) or ``never``.
        link: address of the charts, if there is one.
        timeout_seconds: for each step of the exchange.
    """

    name: str
    account: str
    link: str = ""
    timeout_seconds: float = TIMEOUT_SECONDS
    least: str = "warning"

    def __post_init__(self) -> None:
        self._account()

    def __call__(self, alert: Alert) -> None:
        """Send one alert."""
        account = self._account()
        try:
            with self._connect(account) as server:
                if account.user:
                    server.login(account.user, account.password)
                server.send_message(self._letter(alert, account))
        except smtplib.SMTPRecipientsRefused as error:
            codes = {code for code, _ in error.recipients.values()}
            raise _verdict(min(codes), "no recipient accepted") from None
        except smtplib.SMTPResponseException as error:
            raise _verdict(error.smtp_code, type(error).__name__) from None
        except ssl.SSLError as error:
            raise Retry(f"TLS failed: {error.reason or type(error).__name__}") from None
        except smtplib.SMTPException as error:
            raise Retry(type(error).__name__) from None
        except OSError as error:
            raise Retry(error.strerror or type(error).__name__) from None

    def _connect(self, account: _Account) -> smtplib.SMTP:
        context = ssl.create_default_context()
        if account.scheme == "smtps":
            return smtplib.SMTP_SSL(account.host, account.port, timeout=self.timeout_seconds, context=context)
        server = smtplib.SMTP(account.host, account.port, timeout=self.timeout_seconds)
        try:
            server.ehlo_or_helo_if_needed()
            can = server.has_extn("starttls")
            if account.starttls == "always" and not can:
                raise Refused("the server offers no encryption (STARTTLS), so the password is not sent")
            if can and account.starttls != "never":
                server.starttls(context=context)
        except BaseException:
            server.close()
            raise
        return server

    def _letter(self, alert: Alert, account: _Account) -> EmailMessage:
        letter = EmailMessage()
        letter["Subject"] = " ".join(message.title(alert).split())
        letter["From"] = account.sender
        letter["To"] = ", ".join(account.recipients)
        letter["Date"] = format_datetime(datetime.fromtimestamp(alert.wall_time, timezone.utc))
        letter["Message-ID"] = f"<{digest(alert.key)}@dse-monitor>"
        letter["References"] = f"<{digest(episode(alert))}@dse-monitor>"
        letter["Auto-Submitted"] = "auto-generated"
        letter.set_content(message.text(alert, self.link))
        return letter

    def _account(self) -> _Account:
        """The account behind the reference; a fault is named without quoting any of it."""
        try:
            url = urllib.parse.urlsplit(read_secret(self.account))
            options = dict(urllib.parse.parse_qsl(url.query, strict_parsing=True))
            user, password = (urllib.parse.unquote(part or "") for part in (url.username, url.password))
            account = _Account(
                scheme=url.scheme,
                host=url.hostname or "",
                port=url.port or _PORTS.get(url.scheme, 0),
                user=user,
                password=password,
                sender=options.get("from", ""),
                recipients=tuple(filter(None, (part.strip() for part in options.get("to", "").split(",")))),
                starttls=options.get("starttls", "always" if user else "auto"),
            )
        except ValueError:
            raise self._malformed("it cannot be parsed") from None
        if account.scheme not in _PORTS or not account.host:
            raise self._malformed("scheme or host is missing")
        if not account.sender or not account.recipients:
            raise self._malformed("from or to is missing")
        if account.starttls not in ("always", "auto", "never"):
            raise self._malformed("starttls is none of always, auto, never")
        return account

    def _malformed(self, what: str) -> OutputError:
        return OutputError(
            f"{self.account} holds no mail account: {what}; "
            f"expected smtp://USER:PASSWORD@HOST:587/?from=ADDRESS&to=ADDRESS"
        )


def _verdict(code: int, what: str) -> Exception:
    return Refused(f"SMTP {code}: {what}") if 500 <= code < 600 else Retry(f"SMTP {code}: {what}")


def make(argument: str, link: str) -> Mail:
    """The sink ``email:env:NAME`` or ``email:file:PATH``."""
    return Mail(f"email:{argument}", argument, link)
