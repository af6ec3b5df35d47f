"""`notify`: a message when a run has ended, by real servers on loopback; its secrets are nowhere else."""

from __future__ import annotations

import base64
import http.server
import json
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult
from support.fates import Crew
from support.processes import free_port
from support.projects import InProcess
from support.states import assert_same, final_state
from support.tasks import make_trainer, points

from flambeau import Callback, Trainer
from flambeau.callbacks import Mail, Notify, Webhook
from flambeau.errors import UsageError

SECRET = "".join(["T0p", "S3cr3t"])
"""Part of the webhook's address, and the password; in pieces, as this file may be in a run's code.patch."""


class Hook(http.server.ThreadingHTTPServer):
    """A webhook that keeps what it gets, and answers with a status after some seconds."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.got: list[dict[str, Any]] = []
        self.status, self.seconds = 200, 0.0
        self.address = f"http://127.0.0.1:{self.server_port}/services/{SECRET}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Hook

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert self.headers["Content-Type"] == "application/json"
        self.server.got.append({"path": self.path, **json.loads(body)})
        time.sleep(self.server.seconds)
        self.send_response(self.server.status)
        self.send_header("Location", f"http://127.0.0.1:{self.server.server_port}/elsewhere")
        self.end_headers()

    do_GET = do_POST

    def log_message(self, *arguments: Any) -> None: ...


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hook]:
    server = Hook()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    monkeypatch.setenv("MY_WEBHOOK", server.address)
    monkeypatch.setenv("no_proxy", "*")
    yield server
    server.shutdown()
    server.server_close()


class Inbox:
    """What a mail server has got."""

    def __init__(self) -> None:
        self.mails: list[Message] = []
        self.passwords: list[bytes] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.mails.append(message_from_bytes(envelope.content))
        return "250 OK"

    def authenticate(self, server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
        self.passwords.append(data.password)
        return AuthResult(success=data.password == SECRET.encode(), handled=False)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of localhost that nobody has signed, and its key."""
    folder = tmp_path_factory.mktemp("certificate")
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost "
        f"-addext subjectAltName=DNS:localhost -keyout {key} -out {cert}".split(),
        check=True,
        capture_output=True,
    )
    return cert, key


class Server:
    """A mail server, with its inbox and its port."""

    def __init__(self, certificate: tuple[Path, Path], security: str) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        self.inbox = Inbox()
        options: dict[str, Any] = {"authenticator": self.inbox.authenticate, "auth_required": security != "none"}
        if security == "ssl":
            options |= {"ssl_context": context, "auth_require_tls": False}
        elif security == "starttls":
            options |= {"tls_context": context, "require_starttls": True}
        else:
            options = {}
        self.port = free_port()
        self.security = security
        self.controller = Controller(self.inbox, hostname="127.0.0.1", port=self.port, **options)
        self.controller.start()


@pytest.fixture(params=["starttls", "ssl"])
def server(request: pytest.FixtureRequest, certificate: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    monkeypatch.setenv("MY_PASSWORD", SECRET)
    running = Server(certificate, request.param)
    yield running
    running.controller.stop()


def webhook(**options: Any) -> Notify:
    return Notify(webhook=Webhook(url_env="MY_WEBHOOK"), **options)


def leaks(*folders: Path) -> list[Path]:
    """Files that hold the secret, as it is or in base64."""
    needles = [SECRET.encode(), base64.b64encode(SECRET.encode()).rstrip(b"=")]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return [path for path in files if any(needle in path.read_bytes() for needle in needles)]


class TestWebhook:
    def test_it_gets_one_message_that_says_how_the_run_ended(self, hook: Hook, tmp_path: Path) -> None:
        trainer = make_trainer(val_data=points(), callbacks=[webhook()], run_dir=tmp_path / "run")
        trainer.fit()
        (message,) = hook.got
        assert message.keys() == {"path", "text"}
        lines = message["text"].split("\n")
        assert lines[0] == "flambeau: run finished"
        assert lines[1].startswith("step 3 of 3, on ")
        assert lines[2] == f"best: val/loss {trainer.state.best_score:.6g} at step 3"
        assert lines[3] == f"run: {tmp_path / 'run'}"

    def test_a_failure_is_told_with_its_error_and_a_preemption_with_its_reason(
        self, hook: Hook, flambeau: InProcess, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings = ["callbacks.notify={webhook: {url_env: MY_WEBHOOK, key: content}}"]
        monkeypatch.setenv("PREEMPT_AT", "3")
        flambeau("train", "tiny", "--run-dir", "one", *settings, expect=75)
        monkeypatch.setenv("FAIL_AT", "5")
        with pytest.raises(RuntimeError):
            flambeau("resume", "one", expect=None)
        first, second = hook.got
        assert "flambeau: tiny preempted\nstep 3 of 48" in first["content"]
        assert "reason: a test" in first["content"]
        assert "flambeau: tiny failed\nstep 5 of 48" in second["content"]
        assert "error: RuntimeError: the test's own failure" in second["content"]

    def test_only_the_ends_that_are_asked_for_are_told(self, hook: Hook) -> None:
        make_trainer(callbacks=[webhook(events=["failed"])]).fit()
        assert hook.got == []

    def test_it_is_told_when_everything_is_saved(self, hook: Hook, tmp_path: Path) -> None:
        """What the message says is what is on the disk."""
        seen: list[str] = []

        class Look(Webhook):
            def send(self, *arguments: Any) -> None:
                seen.append(json.loads((tmp_path / "run/status.json").read_text())["state"])

        make_trainer(callbacks=[Notify(webhook=Look(url_env="MY_WEBHOOK"))], run_dir=tmp_path / "run").fit()
        assert seen == ["finished"]

    @pytest.mark.parametrize(("status", "said"), [(404, "status 404"), (500, "status 500"), (302, "status 302")])
    def test_one_that_fails_is_a_warning_without_its_address(
        self, status: int, said: str, hook: Hook, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """And a message that is sent elsewhere has not arrived."""
        hook.status = status
        trainer = make_trainer(callbacks=[webhook()], run_dir=tmp_path / "run")
        trainer.fit()
        told = capsys.readouterr()
        assert f"warning: no notification by the webhook of MY_WEBHOOK: it answered with {said}" in told.err
        assert SECRET not in told.out + told.err
        assert trainer.run_folder is not None
        assert trainer.run_folder.status.state == "finished"
        assert len(hook.got) == 1
        assert leaks(tmp_path) == []

    @pytest.mark.parametrize(
        "address", ["http://127.0.0.1:1/SECRET", "https://SECRET.invalid/", "http://127.0.0.1/SECRET /"]
    )
    def test_no_error_repeats_the_address(
        self, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("MY_WEBHOOK", address.replace("SECRET", SECRET))
        make_trainer(callbacks=[webhook(timeout=5.0)], run_dir=tmp_path / "run").fit()
        told = capsys.readouterr()
        assert "warning: no notification by the webhook of MY_WEBHOOK" in told.err
        assert SECRET not in told.out + told.err
        assert leaks(tmp_path) == []

    @pytest.mark.parametrize(
        "address", ["SECRET", "http://[SECRET", "http://127.0.0.1:SECRET/x", "ftp://h/SECRET", "http:///SECRET"]
    )
    def test_what_is_no_address_is_refused_and_not_repeated(
        self, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MY_WEBHOOK", address.replace("SECRET", SECRET))
        with pytest.raises(UsageError, match="MY_WEBHOOK does not hold an address") as caught:
            make_trainer(callbacks=[webhook()], run_dir=tmp_path / "run").fit()
        assert SECRET not in str(caught.value)
        assert leaks(tmp_path) == []

    def test_one_that_does_not_answer_holds_the_run_up_no_longer_than_it_may(
        self, hook: Hook, capsys: pytest.CaptureFixture[str]
    ) -> None:
        hook.seconds = 2.0
        make_trainer(callbacks=[webhook(timeout=0.05)]).fit()
        assert "no notification by the webhook of MY_WEBHOOK" in capsys.readouterr().err

    def test_an_error_that_holds_the_address_is_sent_and_kept_without_it(self, hook: Hook, tmp_path: Path) -> None:
        """The message is: what the user's own code prints is theirs."""

        class Fail(Callback):
            def on_step_end(self, trainer: Trainer) -> None:
                raise RuntimeError(f"could not reach {hook.address}")

        with pytest.raises(RuntimeError):
            make_trainer(callbacks=[webhook(), Fail()]).fit()
        assert "could not reach ***" in hook.got[0]["text"]

    def test_of_several_processes_one_tells_also_if_another_failed(self, hook: Hook, tmp_path: Path) -> None:
        Crew(tmp_path, 2, train_and_tell, tmp_path / "good").fates()
        assert [message["text"].split("\n")[0] for message in hook.got] == ["flambeau: good finished"]
        hook.got.clear()
        Crew(tmp_path, 2, train_and_tell, tmp_path / "bad", fails=True).fates()
        (message,) = hook.got
        assert message["text"].startswith("flambeau: bad failed")
        assert "ArithmeticError: mine" in message["text"]

    def test_a_notebook_s_run_without_a_folder_is_told_of_too(self, hook: Hook) -> None:
        make_trainer(callbacks=[webhook()]).fit()
        assert hook.got[0]["text"].startswith("flambeau: Linear finished\nstep 3 of 3")


def assert_same_weights(one: Path, other: Path) -> None:
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    assert_same(dict(final_state(one)["model"]), dict(final_state(other)["model"]))


def train_and_tell(run_dir: Path, *, fails: bool = False) -> None:
    class Fail(Callback):
        def on_step_end(self, trainer: Trainer) -> None:
            if fails and trainer.world.rank == 1:
                raise ArithmeticError("mine")

    make_trainer(callbacks=[webhook(), Fail()], run_dir=run_dir, dry_batch=False).fit()


@pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")  # the server's socket is encrypted already
class TestMail:
    def test_it_is_sent_encrypted_with_a_login(self, server: Server, tmp_path: Path) -> None:
        mail = Mail(
            to=["me@example.org", "you@example.org"],
            host="localhost",
            port=server.port,
            security=server.security,
            user="me@example.org",
            password_env="MY_PASSWORD",
        )
        make_trainer(callbacks=[Notify(mail=mail)], run_dir=tmp_path / "run").fit()
        (message,) = server.inbox.mails
        assert server.inbox.passwords == [SECRET.encode()]
        assert message["Subject"] == "flambeau: run finished"
        assert (message["From"], message["To"]) == ("me@example.org", "me@example.org, you@example.org")
        assert "step 3 of 3" in message.get_payload()
        assert leaks(tmp_path / "run") == []

    def test_a_certificate_that_nobody_vouches_for_gets_no_password(
        self, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.delenv("SSL_CERT_FILE")
        mail = Mail(
            to=["me@example.org"],
            host="localhost",
            port=server.port,
            security=server.security,
            user="me",
            password_env="MY_PASSWORD",
        )
        make_trainer(callbacks=[Notify(mail=mail)]).fit()
        assert "no notification by the mail server localhost" in capsys.readouterr().err
        assert server.inbox.passwords == server.inbox.mails == []

    def test_a_refused_login_is_a_warning(
        self, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("MY_PASSWORD", f"not {SECRET}")
        mail = Mail(
            to=["me@example.org"],
            host="localhost",
            port=server.port,
            security=server.security,
            user="me",
            password_env="MY_PASSWORD",
        )
        make_trainer(callbacks=[Notify(mail=mail)]).fit()
        told = capsys.readouterr().err
        assert "no notification by the mail server localhost: SMTPAuthenticationError 535" in told
        assert SECRET not in told
        assert server.inbox.mails == []

    def test_a_server_within_the_house_may_need_neither(self, certificate: Any) -> None:
        server = Server(certificate, "none")
        mail = Mail(to=["me@example.org"], host="127.0.0.1", port=server.port, security="none")
        make_trainer(callbacks=[Notify(mail=mail)]).fit()
        server.controller.stop()
        assert [message["From"] for message in server.inbox.mails] == ["me@example.org"]


class TestSecrets:
    def test_they_are_in_no_file_of_the_run_and_in_nothing_that_it_says(
        self, hook: Hook, flambeau: InProcess, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of a run that is told by both ways, one of which fails; nor in what `flambeau config` shows."""
        monkeypatch.setenv("MY_PASSWORD", SECRET)
        hook.status = 403
        (flambeau.project.root / "configs/told.yaml").write_text(
            "base: [tiny]\ntrainer: {epochs: 1}\ntracking: [tensorboard]\ncallbacks:\n  notify:\n"
            "    webhook: {url_env: MY_WEBHOOK}\n    timeout: 5\n"
            "    mail: {to: [me@example.org], host: localhost, port: 1, user: me, password_env: MY_PASSWORD}\n"
        )
        shown = flambeau("config", "told")
        answer = flambeau("train", "told", "--run-dir", "run")
        assert answer.err.count("no notification by") == 2
        assert SECRET not in shown.out + answer.out + answer.err
        assert leaks(flambeau.project.root) == []
        assert "MY_WEBHOOK" in (flambeau.project.root / "run/config.yaml").read_text()

    def test_one_in_place_of_its_name_is_refused_and_not_repeated(self, hook: Hook, flambeau: InProcess) -> None:
        answer = flambeau("train", "tiny", f"callbacks.notify={{webhook: {{url_env: '{hook.address}'}}}}", expect=2)
        assert "is the name of an environment variable, not what it holds" in answer.err
        assert SECRET not in answer.out + answer.err
        assert leaks(flambeau.project.root) == []

    def test_a_missing_one_ends_the_run_before_its_first_step(self, flambeau: InProcess) -> None:
        answer = flambeau(
            "train", "tiny", "--run-dir", "run", "callbacks.notify={webhook: {url_env: NOT_SET}}", expect=2
        )
        assert "there is no NOT_SET in the environment" in answer.err
        assert json.loads((flambeau.project.root / "run/status.json").read_text())["step"] == 0

    def test_a_run_can_get_one_on_the_way_and_stays_the_same(
        self, hook: Hook, flambeau: InProcess, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Callbacks that only watch need no --force; any other, and one under their label, does."""
        flambeau("train", "tiny", "--run-dir", "whole")
        monkeypatch.setenv("PREEMPT_AT", "5")
        flambeau("train", "tiny", "--run-dir", "run", expect=75)
        monkeypatch.delenv("PREEMPT_AT")
        flambeau("resume", "run", "callbacks.notify={name: tally}", expect=2)
        flambeau("resume", "run", "callbacks.tell={name: stop_when, samples: 8}", expect=2)
        flambeau("resume", "run", "callbacks.tell={name: notify, webhook: {url_env: MY_WEBHOOK}}")
        assert len(hook.got) == 1
        assert_same_weights(flambeau.project.root / "run", flambeau.project.root / "whole")

    def test_a_run_can_be_measured_without_them(
        self, hook: Hook, flambeau: InProcess, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        flambeau("train", "tiny", "--run-dir", "run", "callbacks.notify={webhook: {url_env: MY_WEBHOOK}}")
        monkeypatch.delenv("MY_WEBHOOK")
        assert len(hook.got) == 1
        assert "accuracy" in flambeau("evaluate", "run").out
        assert len(hook.got) == 1

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({}, "nowhere to send to"),
            ({"webhook": Webhook(url_env="A"), "events": ["done"]}, "no event is called 'done'"),
        ],
    )
    def test_what_cannot_be_meant_is_refused(self, options: Any, said: str) -> None:
        with pytest.raises(UsageError, match=said):
            Notify(**options)

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"to": []}, "there is no address"),
            ({"to": ["me"]}, "looks like me@example.org"),
            ({"to": ["me@example.org\nBcc: you@example.org"]}, "looks like me@example.org"),
            ({"user": "me"}, "needs both user and password_env"),
            ({"user": "me", "password_env": "HOME", "security": "none"}, "is not sent unencrypted"),
        ],
    )
    def test_mail_that_cannot_be_sent_is_refused(self, options: Any, said: str) -> None:
        with pytest.raises(UsageError, match=said):
            Mail(**{"to": ["me@example.org"], "host": "localhost", **options}).check()
