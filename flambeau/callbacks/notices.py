"""Messages to people: by mail, and to a webhook. No secret is in what these give back."""

from __future__ import annotations

import json
import os
import re
import smtplib
import ssl
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from annotated_types import Interval

from flambeau.errors import UsageError

LONGEST = 1900
"""Characters of a webhook's message; Discord takes 2,000."""


@dataclass(kw_only=True)
class Webhook:
    """A webhook that takes JSON by POST: of Slack, Mattermost, Discord, or one's own."""

    url_env: str
    """The name of the environment variable that holds the address, which is a secret itself."""
    key: Literal["text", "content"] = "text"
    """The key of the message: `text` for Slack, Mattermost and Discord's addresses that end in `/slack`;
    `content` for Discord's own."""

    def __post_init__(self) -> None:
        require_name(self.url_env, "webhook.url_env")

    @property
    def name(self) -> str:
        return f"the webhook of {self.url_env}"

    def check(self) -> None:
        """See that the address is there.

        Raises:
            UsageError: the variable is missing, or does not hold an address.
        """
        try:
            parts = urlsplit(secret(self.url_env))
            is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:  # whose text has the address in it
            is_address = False
        if not is_address:
            raise UsageError(f"callback notify: {self.url_env} does not hold an address: https://...")

    def send(self, subject: str, lines: Sequence[str], timeout: float) -> None:
        """Post a message.

        Raises:
            OSError: it was not taken; the error holds nothing of the address.
        """
        text = "\n".join([subject, *lines])[:LONGEST]
        request = urllib.request.Request(
            secret(self.url_env),
            data=json.dumps({self.key: text}).encode(),
            headers={"Content-Type": "application/json", "User-Agent": "flambeau"},
        )
        failure = None
        try:
            with urllib.request.build_opener(_NoRedirect).open(request, timeout=timeout):
                return
        except urllib.error.HTTPError as error:
            failure = f"it answered with status {error.code}"
        except urllib.error.URLError as error:
            failure = getattr(error.reason, "strerror", None) or type(error.reason).__name__
        except OSError as error:
            failure = error.strerror or type(error).__name__
        except Exception as error:  # of a malformed address, whose text would be in the message
            failure = type(error).__name__
        raise OSError(failure)


@dataclass(kw_only=True)
class Mail:
    """Mail by SMTP."""

    to: list[str]
    """Addresses."""
    host: str
    """The mail server."""
    sender: str | None = None
    """The address that it comes from; default: `user` if that is an address, else the first of `to`."""
    security: Literal["starttls", "ssl", "none"] = "starttls"
    """`starttls` encrypts after the first words (port 587), `ssl` from the first (465), `none` never (25)."""
    port: Annotated[int, Interval(ge=1, le=65535)] | None = None
    """Default: the usual one of `security`."""
    user: str | None = None
    """To log in with; default: no login."""
    password_env: str | None = None
    """The name of the environment variable that holds the password."""

    def __post_init__(self) -> None:
        if self.password_env is not None:
            require_name(self.password_env, "mail.password_env")

    @property
    def name(self) -> str:
        return f"the mail server {self.host}"

    def check(self) -> None:
        """See that the settings go together and the password is there.

        Raises:
            UsageError: they do not, or it is not.
        """
        if not self.to:
            raise UsageError("callback notify: mail.to: there is no address")
        if any(not re.fullmatch(r"[^\s@,;]+@[^\s@,;]+", address) for address in [*self.to, self._sender()]):
            raise UsageError("callback notify: mail: an address looks like me@example.org")
        if (self.user is None) != (self.password_env is None):
            raise UsageError("callback notify: mail: a login needs both user and password_env")
        if self.password_env is not None:
            if self.security == "none":
                raise UsageError(
                    "callback notify: mail: a password is not sent unencrypted", remedy="security: starttls, or ssl"
                )
            secret(self.password_env)

    def send(self, subject: str, lines: Sequence[str], timeout: float) -> None:
        """Send a message.

        Raises:
            OSError: the server did not take it; the error holds nothing of the password.
        """
        message = EmailMessage()
        message["Subject"] = " ".join(subject.split())
        message["From"] = self._sender()
        message["To"] = ", ".join(self.to)
        message["Date"] = formatdate(localtime=True)
        message["Message-ID"] = make_msgid("flambeau", domain=self._sender().rpartition("@")[2])
        message.set_content("\n".join(lines) + "\n")
        failure = None
        try:
            with self._connect(timeout) as server:
                if self.user is not None and self.password_env is not None:
                    server.login(self.user, secret(self.password_env))
                server.send_message(message)
                return
        except smtplib.SMTPResponseException as error:  # its text is the server's, which may repeat what it was told
            failure = f"{type(error).__name__} {error.smtp_code}"
        except OSError as error:
            failure = error.strerror or type(error).__name__
        except Exception as error:
            failure = type(error).__name__
        raise OSError(failure)

    def _sender(self) -> str:
        if self.sender is not None:
            return self.sender
        return self.user if self.user is not None and "@" in self.user else self.to[0]

    def _connect(self, timeout: float) -> smtplib.SMTP:
        context = ssl.create_default_context()
        if self.security == "ssl":
            return smtplib.SMTP_SSL(self.host, self.port or 465, timeout=timeout, context=context)
        server = smtplib.SMTP(self.host, self.port or (587 if self.security == "starttls" else 25), timeout=timeout)
        if self.security == "starttls":
            server.starttls(context=context)
        return server


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A message that is sent on would arrive without its content, and would seem to have arrived."""

    def redirect_request(self, *arguments: Any, **keywords: Any) -> None:
        return None


def require_name(variable: str, key: str) -> None:
    """See that a setting names an environment variable.

    Raises:
        UsageError: it may be the secret itself; then it is not repeated.
    """
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", variable):
        raise UsageError(
            f"callback notify: {key} is the name of an environment variable, not what it holds",
            remedy=f"export it, and give its name: {key.rpartition('.')[2]}: MY_SECRET",
        )


def secret(variable: str) -> str:
    """The value of an environment variable.

    Raises:
        UsageError: there is none.
    """
    value = os.environ.get(variable)
    if not value:
        raise UsageError(f"callback notify: there is no {variable} in the environment", remedy=f"export {variable}=...")
    return value
