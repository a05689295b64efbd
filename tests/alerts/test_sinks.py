import base64
import dataclasses
import json
import logging
import os
import socketserver
import ssl
import sys
import threading
import time
from email import message_from_bytes, policy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dse_monitor.alerts.sinks import SINKS, Command, Log, from_spec
from dse_monitor.alerts.sinks.delivery import Refused, Retry
from dse_monitor.alerts.sinks.outbox import Outbox
from dse_monitor.alerts.sinks.secret import read_secret
from dse_monitor.alerts.sinks.webhook import Webhook, alertmanager_body
from dse_monitor.errors import OutputError
from dse_monitor.runs.record import Alert, alert_from_json

pytestmark = pytest.mark.fast

ALERT = Alert(
    kind="degradation",
    status="firing",
    run="exp1",
    epoch=120.0,
    since=110.0,
    best_at=90.0,
    best_path="runs/exp 1/checkpoint0089.pth",
    drop=0.046,
    drop_se=0.006,
    shares={"separability": 0.78, "m_dim": 0.22},
    cause="separability",
    message="DSE at epoch 120 is 0.046 below the best.",
    key="exp1/degradation/1/firing",
    wall_time=1_700_000_000.0,
)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


class Scripted(ThreadingHTTPServer):
    """A web server that answers from a script: (status, headers) or a number of seconds to hang."""

    daemon_threads = False

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.bodies, self.headers, self.paths = [], [], [], []
        self.let_go = threading.Event()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/hook/s3cret"

    def handle_error(self, request, client_address):
        pass


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.bodies.append(json.loads(body))
        self.server.headers.append(dict(self.headers))
        self.server.paths.append(self.path)
        answer = self.server.script.pop(0) if self.server.script else (200, {})
        if answer == "hang":
            self.server.let_go.wait(10)
            return
        self.send_response(answer[0])
        for name, value in answer[1].items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self):
        self.server.paths.append("GET " + self.path)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    server = Scripted()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("HOOK", server.url)
    yield server
    server.let_go.set()
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_chat_room_gets_the_text_and_the_whole_alert(server):
    from_spec("webhook:env:HOOK", link="http://tb/#dse")(ALERT)
    [body] = server.bodies
    assert "exp1: dense features are degrading" in body["text"]
    assert (
        "dse-train METHOD --data IMAGES --out NEW_RUN --init-from 'runs/exp 1/checkpoint0089.pth' "
        "--dse-weight 0.001 --epochs 10" in body["text"]
    )
    assert "http://tb/#dse" in body["text"]
    assert alert_from_json(body["dse"]) == ALERT
    assert server.paths == ["/hook/s3cret"]


def test_the_same_alert_carries_the_same_key(server):
    sink = from_spec("webhook:env:HOOK")
    sink(ALERT)
    sink(ALERT)
    sink(dataclasses.replace(ALERT, key="exp1/degradation/1/resolved"))
    keys = [h["Idempotency-Key"] for h in server.headers]
    assert keys[0] == keys[1] != keys[2]


def test_alertmanager_json_has_one_fingerprint_for_firing_and_resolved(server):
    sink = from_spec("alertmanager:env:HOOK")
    sink(ALERT)
    sink(dataclasses.replace(ALERT, status="resolved", key="exp1/degradation/1/resolved"))
    firing, resolved = (body["alerts"][0] for body in server.bodies)
    assert server.bodies[0]["version"] == "4"
    assert (firing["status"], resolved["status"]) == ("firing", "resolved")
    assert firing["fingerprint"] == resolved["fingerprint"]
    assert firing["startsAt"] == "2023-11-14T22:13:20Z"
    assert firing["endsAt"].startswith("0001-01-01")
    assert resolved["endsAt"] == "2023-11-14T22:13:20Z"
    assert firing["labels"] == {
        "alertname": "DSE degradation",
        "run": "exp1",
        "severity": "warning",
        "kind": "degradation",
        "cause": "separability",
    }


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 302, 307, 308])
def test_an_answer_that_may_change_is_tried_again(code, server):
    server.script = [(code, {"Location": "/elsewhere"})]
    with pytest.raises(Retry, match=f"HTTP {code}"):
        from_spec("webhook:env:HOOK")(ALERT)
    assert server.paths == ["/hook/s3cret"]  # a redirect is not followed


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410])
def test_an_answer_that_will_not_change_is_final(code, server):
    server.script = [(code, {})]
    with pytest.raises(Refused, match=f"HTTP {code}"):
        from_spec("webhook:env:HOOK")(ALERT)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        ("Tue, 14 Nov 2023 22:14:20 GMT", 60.0),
        ("Tue, 14 Nov 2023 22:00:00 GMT", 0.0),
        ("soon", None),
    ],
)
def test_retry_after_is_read_as_seconds_or_date(header, seconds, server):
    server.script = [(429, {"Retry-After": header})]
    with pytest.raises(Retry) as caught:
        Webhook("w", "env:HOOK", clock=lambda: 1_700_000_000.0)(ALERT)
    assert caught.value.after == seconds


def test_a_server_that_hangs_is_given_up_in_time(server):
    server.script = ["hang"]
    with pytest.raises(Retry, match="no answer in time"):
        Webhook("w", "env:HOOK", timeout_seconds=0.2)(ALERT)


def test_a_server_that_is_down_is_tried_again(monkeypatch):
    with socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as closed:
        port = closed.server_address[1]
    monkeypatch.setenv("HOOK", f"http://127.0.0.1:{port}/s3cret")
    with pytest.raises(Retry, match="refused") as caught:
        from_spec("webhook:env:HOOK")(ALERT)
    assert "s3cret" not in str(caught.value)


def test_a_server_without_tls_behind_https_is_tried_again(server, monkeypatch):
    monkeypatch.setenv("HOOK", server.url.replace("http:", "https:"))
    with pytest.raises(Retry, match="TLS failed"):
        from_spec("webhook:env:HOOK")(ALERT)
    assert server.bodies == []


def test_a_certificate_of_nobody_known_is_not_accepted(tmp_path, server, monkeypatch, certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    monkeypatch.setenv("HOOK", server.url.replace("http:", "https:"))
    with pytest.raises(Retry, match="certificate not accepted"):
        from_spec("webhook:env:HOOK")(ALERT)
    assert server.bodies == []


def test_after_every_fault_in_turn_an_alert_is_accepted_once(server):
    faults = [(429, {"Retry-After": "120"}), (500, {}), "hang", (302, {"Location": "/elsewhere"}), (503, {})]
    server.script = list(faults)
    now = [1_700_000_000.0]
    facts = []
    sink = Webhook("hook", "env:HOOK", timeout_seconds=0.3, clock=lambda: now[0])
    box = Outbox([sink], facts.append, lambda: now[0], threads=False)
    box.submit(ALERT)
    while (wait := box.deliver_due()) is not None:
        now[0] += wait
    assert [(f["event"], f["attempts"]) for f in facts] == [("delivered", len(faults) + 1)]
    assert len(server.bodies) == len(faults) + 1
    assert len({h["Idempotency-Key"] for h in server.headers}) == 1
    assert now[0] >= 1_700_000_000.0 + 120


def test_link_and_numbers_that_are_not_finite_make_valid_json():
    body = alertmanager_body(dataclasses.replace(ALERT, drop=float("nan"), drop_se=float("inf")))
    assert json.loads(json.dumps(body, allow_nan=False))["dse"]["drop"] is None


# Secrets


def test_secrets_come_from_environment_or_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HOOK", " https://a/b \n")
    (tmp_path / "hook").write_text("https://c/d\nsecond line\n")
    assert read_secret("env:HOOK") == "https://a/b"
    assert read_secret(f"file:{tmp_path / 'hook'}") == "https://c/d"


def test_a_secret_written_out_is_refused_without_repeating_it():
    with pytest.raises(OutputError, match="env:NAME or file:PATH") as caught:
        from_spec("webhook:https://hooks.example/services/T0/s3cret")
    assert "s3cret" not in str(caught.value)


def test_a_missing_or_malformed_secret_is_named_before_it_is_needed(tmp_path, monkeypatch):
    monkeypatch.delenv("HOOK", raising=False)
    with pytest.raises(OutputError, match="HOOK is not set"):
        from_spec("webhook:env:HOOK")
    with pytest.raises(OutputError, match="cannot be read"):
        from_spec(f"webhook:file:{tmp_path / 'none'}")
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(OutputError, match="is empty"):
        from_spec(f"webhook:file:{tmp_path / 'empty'}")
    for bad in ("s3cret", "ftp://h/s3cret", "http://", "http://h:port/s3cret", "https://h/s3 cret"):
        monkeypatch.setenv("HOOK", bad)
        with pytest.raises(OutputError, match="holds no web address") as caught:
            from_spec("webhook:env:HOOK")
        assert "cret" not in str(caught.value)


def test_names_of_sinks_hold_no_secret(monkeypatch):
    monkeypatch.setenv("HOOK", "https://h/s3cret")
    monkeypatch.setenv("MAIL", "smtp://u:s3cret@h/?from=a@b&to=c@d")
    for spec in (
        "webhook:env:HOOK",
        "alertmanager:env:HOOK",
        "email:env:MAIL",
        "command:/bin/notify --token s3cret",
    ):
        sink = from_spec(spec)
        assert "s3cret" not in sink.name
        assert "s3cret" not in repr(sink) or spec.startswith("command")
        assert sink.name == from_spec(spec).name


def test_every_sink_can_be_named_and_others_are_refused():
    assert set(SINKS) == {"log", "command", "webhook", "alertmanager", "email"}
    with pytest.raises(OutputError, match="no alert sink 'pager'; there are log, command"):
        from_spec("pager:1")
    with pytest.raises(OutputError, match="takes no argument"):
        from_spec("log:file")
    with pytest.raises(OutputError, match="is empty"):
        from_spec("command:")
    with pytest.raises(OutputError, match="split into words"):
        from_spec("command:echo 'a")


def test_the_log_gets_the_story(caplog):
    with caplog.at_level(logging.INFO, logger="dse_monitor.alerts"):
        Log()(ALERT)
        Log()(dataclasses.replace(ALERT, status="resolved"))
    assert [r.levelname for r in caplog.records] == ["WARNING", "INFO"]
    assert "Keep the best checkpoint: runs/exp 1/checkpoint0089.pth" in caplog.records[0].getMessage()


# Commands


def python(code):
    return Command((sys.executable, "-c", code), timeout_seconds=20.0)


def test_a_command_gets_json_on_its_input_and_variables(tmp_path):
    out = tmp_path / "out"
    python(
        "import json, os, sys; "
        "values = [os.environ['DSE_' + name] for name in ('RUN', 'EPOCH', 'STEP')]; "
        "json.dump([json.load(sys.stdin), *values], "
        f"open({str(out)!r}, 'w'))"
    )(ALERT)
    alert, *variables = json.loads(out.read_text())
    assert alert_from_json(alert) == ALERT
    assert variables == ["exp1", "120", ""]


def test_a_command_is_no_shell(tmp_path):
    out = tmp_path / "out"
    code = f"import sys; open({str(out)!r}, 'w').write(sys.argv[1])"
    Command((sys.executable, "-c", code, "$HOME; rm -rf *"))(ALERT)
    assert out.read_text() == "$HOME; rm -rf *"


def test_a_command_that_fails_or_is_missing_is_tried_again(tmp_path):
    with pytest.raises(Retry, match="code 3"):
        python("raise SystemExit(3)")(ALERT)
    with pytest.raises(Retry, match="cannot be started: No such file"):
        Command((str(tmp_path / "none"),))(ALERT)


def test_a_command_may_ignore_its_input_and_print_garbage(capfd):
    python("import os; os.write(1, os.urandom(200_000)); os.write(2, b'x' * 200_000)")(ALERT)
    assert capfd.readouterr() == ("", "")


def test_a_command_that_hangs_is_ended_with_its_children(tmp_path):
    pid = tmp_path / "pid"
    code = (
        "import os, subprocess, sys, time; "
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
        f"open({str(pid) + '.part'!r}, 'w').write(str(child.pid)); "
        f"os.rename({str(pid) + '.part'!r}, {str(pid)!r}); time.sleep(60)"
    )
    sink = Command((sys.executable, "-c", code), timeout_seconds=2.0)
    with pytest.raises(Retry, match="took longer than 2 s"):
        sink(ALERT)
    if not pid.exists():
        pytest.fail("the command did not get far enough within its time")
    assert _is_gone(int(pid.read_text()))


def _is_gone(pid):
    """Whether a killed process has ended; it may be a zombie until its new parent reaps it."""
    end = time.monotonic() + 5
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
            os.kill(pid, 0)
        except (OSError, IndexError):
            return True
        threading.Event().wait(0.01)
    return False


# E-mail


class PostOffice(socketserver.ThreadingTCPServer):
    """A small SMTP server that keeps what it is told; answers can be replaced by verb."""

    allow_reuse_address = True
    daemon_threads = False

    def __init__(self, certificate=None):
        super().__init__(("127.0.0.1", 0), Clerk)
        self.letters, self.logins, self.answers = [], [], {}
        self.context = None
        if certificate:
            self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.context.load_cert_chain(*certificate)

    def handle_error(self, request, client_address):
        pass


class Clerk(socketserver.StreamRequestHandler):
    def say(self, line):
        self.wfile.write(line.encode() + b"\r\n")

    def handle(self):
        try:
            self.serve()
        finally:
            self.connection.close()

    def serve(self):
        self.say("220 here")
        encrypted = False
        while line := self.rfile.readline().decode().strip():
            verb = line.split()[0].upper()
            if verb in self.server.answers:
                self.say(self.server.answers[verb])
            elif verb == "EHLO":
                extensions = ["AUTH PLAIN LOGIN"] + (
                    ["STARTTLS"] if self.server.context and not encrypted else []
                )
                self.say("250-here")
                for k, extension in enumerate(extensions):
                    self.say(f"250{' ' if k == len(extensions) - 1 else '-'}{extension}")
            elif verb == "STARTTLS":
                self.say("220 go on")
                self.connection = self.server.context.wrap_socket(self.connection, server_side=True)
                self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", 0)
                encrypted = True
            elif verb == "AUTH":
                self.server.logins.append((base64.b64decode(line.split()[2]), encrypted))
                self.say("235 welcome")
            elif verb == "DATA":
                self.say("354 go on")
                data = b""
                while (row := self.rfile.readline()) != b".\r\n":
                    data += row
                self.server.letters.append(message_from_bytes(data, policy=policy.default))
                self.say("250 taken")
            elif verb == "QUIT":
                self.say("221 bye")
                return
            else:
                self.say("250 fine")


@pytest.fixture
def post_office(request):
    certificate = request.getfixturevalue("certificate") if getattr(request, "param", "") == "tls" else None
    server = PostOffice(certificate)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def mail_to(server, monkeypatch, user="", options=""):
    port = server.server_address[1]
    monkeypatch.setenv(
        "MAIL", f"smtp://{user}127.0.0.1:{port}/?from=dse@lab.example&to=a@x.example,b@x.example{options}"
    )
    return from_spec("email:env:MAIL")


def test_a_letter_says_it_all(post_office, monkeypatch):
    mail_to(post_office, monkeypatch)(dataclasses.replace(ALERT, run="exp1\nBcc: all@x"))
    [letter] = post_office.letters
    assert letter["Subject"] == "exp1 Bcc: all@x: dense features are degrading"
    assert (letter["To"], letter["From"], letter["Bcc"]) == (
        "a@x.example, b@x.example",
        "dse@lab.example",
        None,
    )
    assert "Keep the best checkpoint" in letter.get_content()


def test_letters_of_one_episode_form_a_thread(post_office, monkeypatch):
    sink = mail_to(post_office, monkeypatch)
    sink(ALERT)
    sink(dataclasses.replace(ALERT, status="resolved", key="exp1/degradation/1/resolved"))
    first, second = post_office.letters
    assert first["References"] == second["References"]
    assert first["Message-ID"] != second["Message-ID"]


def test_a_password_is_not_sent_without_encryption(post_office, monkeypatch):
    with pytest.raises(Refused, match="no encryption"):
        mail_to(post_office, monkeypatch, user="me:s3cret@")(ALERT)
    assert post_office.logins == []
    mail_to(post_office, monkeypatch, user="me:p%40ss@", options="&starttls=never")(ALERT)
    assert post_office.logins == [(b"\0me\0p@ss", False)]


@pytest.mark.parametrize("post_office", ["tls"], indirect=True)
def test_a_password_travels_encrypted_to_a_server_whose_certificate_is_trusted(
    post_office, monkeypatch, certificate
):
    with pytest.raises(Retry, match="TLS failed"):
        mail_to(post_office, monkeypatch, user="me:s3cret@")(ALERT)
    assert post_office.logins == []
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    mail_to(post_office, monkeypatch, user="me:s3cret@")(ALERT)
    assert post_office.logins == [(b"\0me\0s3cret", True)]
    assert len(post_office.letters) == 1


@pytest.mark.parametrize(
    ("verb", "answer", "verdict"),
    [
        ("DATA", "451 try later", Retry),
        ("DATA", "554 spam", Refused),
        ("MAIL", "452 full", Retry),
        ("RCPT", "550 unknown", Refused),
        ("RCPT", "450 greylisted", Retry),
        ("EHLO", "421 closing", Retry),
    ],
)
def test_4xx_is_tried_again_and_5xx_is_final(verb, answer, verdict, post_office, monkeypatch):
    post_office.answers = {verb: answer, "HELO": answer}
    with pytest.raises(verdict):
        mail_to(post_office, monkeypatch)(ALERT)


def test_a_mail_server_that_is_down_is_tried_again(monkeypatch):
    with socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as closed:
        sink = mail_to(closed, monkeypatch)
    with pytest.raises(Retry, match="refused"):
        sink(ALERT)


@pytest.mark.parametrize(
    "account",
    [
        "s3cret",
        "http://h/?from=a@b&to=c@d",
        "smtp://u:s3cret@h/",
        "smtp://u:s3cret@h/?from=a@b",
        "smtp://u:s3cret@h:port/?from=a@b&to=c@d",
        "smtp://u:s3cret@h/?from=a@b&to=c@d&starttls=maybe",
    ],
)
def test_a_malformed_account_is_refused_without_repeating_it(account, monkeypatch):
    monkeypatch.setenv("MAIL", account)
    with pytest.raises(OutputError, match="MAIL holds no mail account") as caught:
        from_spec("email:env:MAIL")
    assert "s3cret" not in str(caught.value)
