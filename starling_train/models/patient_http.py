"""Requests to a server that may be away for a while: temporary failures are retried, everything else is an answer.

A request that fails temporarily (no connection, no answer in time, 429, any 5xx, those of proxies too) is sent again
after a growing pause, until `patience_s` seconds have gone since it first failed.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from starling_train.config.fields import UserError

if TYPE_CHECKING:
    import httpx

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 5.0
PASSING = (408, 425, 429)  # and all from 500 on
BEARER = "Authorization"


class Unreachable(UserError):
    """A server that has given no answer for all of its patience."""


class HttpConfig(Protocol):
    """connections: at most; timeout_s: of a request; patience_s: see above."""

    @property
    def connections(self) -> int: ...
    @property
    def timeout_s(self) -> float: ...
    @property
    def patience_s(self) -> float: ...


class PatientHttp:
    """A few connections to one address, for several threads.

    server, gives: what it is and what it returns, for messages.
    key: the configuration section, for messages.
    is_outside: use the environment's proxies, which are for the outside world.
    longest_pause_s: between two attempts, unless the server asks for more (Retry-After).
    token_header: what carries the token: Authorization, as a bearer token; any other header, the token alone.
    status_of: reads the status of an answer, for servers that tell it elsewhere; None: the HTTP status.
    on_return: called when a server that was away answers again, which may be another one.
    """

    def __init__(
        self,
        server: str,
        gives: str,
        key: str,
        url: str,
        token: str | None,
        config: HttpConfig,
        *,
        is_outside: bool = False,
        longest_pause_s: float = LONGEST_PAUSE_S,
        token_header: str = BEARER,
        status_of: "Callable[[httpx.Response], int] | None" = None,
        on_return: Callable[[], None] = lambda: None,
    ) -> None:
        import httpx

        self.url = url
        self._server, self._gives, self._key = server, gives, key
        self._patience_s, self._longest_pause_s = config.patience_s, longest_pause_s
        self._status_of, self._on_return = status_of, on_return
        self._silent = threading.Event()  # set once it is reported that the server is away
        self._given_up = threading.Event()  # set when one request has failed for good: the others need not wait
        self._http = httpx.Client(
            headers={token_header: f"Bearer {token}" if token_header.lower() == BEARER.lower() else token}
            if token
            else {},
            timeout=config.timeout_s,
            limits=httpx.Limits(max_connections=config.connections, max_keepalive_connections=config.connections),
            trust_env=is_outside,
        )

    def post(self, body: Any) -> "httpx.Response":
        """Post until an answer is not a passing failure. Raises Unreachable when patience is at its end."""
        import httpx

        began, pause = None, FIRST_PAUSE_S
        while True:
            requested = 0.0
            try:
                response = self._http.post(self.url, json=body)
                status = self._status_of(response) if self._status_of else response.status_code
                if status not in PASSING and status < 500:
                    self._report_return()
                    return response
                reason, requested = reason_of(response), _retry_after(response)
            except httpx.RequestError as error:
                reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            began = began or time.monotonic()
            left = began + self._patience_s - time.monotonic()
            if left <= 0 or self._given_up.is_set():
                raise Unreachable(
                    f"{self._key}.url: {self.url} gave no {self._gives} for {self._patience_s:g} s ({reason}); start "
                    f"the server and run the same command again, or raise {self._key}.patience_s"
                )
            self._report(reason)
            self._given_up.wait(min(max(pause, requested), left))
            pause = min(2 * pause, self._longest_pause_s)

    def told(self, url: str) -> dict[str, Any]:
        """Return what a GET of an address tells, a JSON object; empty where it does not, or nobody answers."""
        try:
            content = json.loads(self.text_of(url))
        except (ValueError, RecursionError):
            return {}
        return content if isinstance(content, dict) else {}

    def text_of(self, url: str) -> str:
        """Return the text of a GET of an address; empty where there is none, or nobody answers."""
        import httpx

        try:
            return self._http.get(url).raise_for_status().text
        except httpx.HTTPError:
            return ""

    def refusal(self, response: "httpx.Response", remedy: str) -> UserError:
        """Make the error for an answer that another request would not change."""
        return UserError(f"{self._key}.url: {self.url} refuses ({reason_of(response)}); {remedy}")

    def give_up(self) -> None:
        """Let no request wait for another attempt from here on."""
        self._given_up.set()

    def close(self) -> None:
        self.give_up()
        self._http.close()

    def _report(self, reason: str) -> None:
        if not self._silent.is_set():
            self._silent.set()
            print(
                f"{self._server} {self.url}: {reason}; trying again for up to {self._patience_s:g} s",
                file=sys.stderr,
                flush=True,
            )

    def _report_return(self) -> None:
        if self._silent.is_set():
            self._silent.clear()
            print(f"{self._server} {self.url} answers again", file=sys.stderr, flush=True)
            self._on_return()


def address(url: str, key: str) -> str:
    """Check and normalise a URL. Raises UserError, naming the key, for what no request can be sent to."""
    import httpx

    try:
        known = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise UserError(f"{key}: '{url}' is not an address ({error}); give http://HOST:PORT") from error
    if known.scheme not in ("http", "https") or not known.host:
        raise UserError(f"{key}: '{url}' is not an address; give http://HOST:PORT")
    return str(known)


def token_of(variable: str | None) -> str | None:
    """Read the bearer token in an environment variable, if any. Raises UserError if no header can carry it."""
    token = os.environ.get(variable, "").strip() if variable else ""
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise UserError(f"{variable}: the token has spaces or characters beyond ASCII, which HTTP cannot carry")
    return token or None


def reason_of(response: "httpx.Response") -> str:
    """Return the status and, if the server gives one, its message, on one line."""
    try:
        message = message_of(response.json())
    except (ValueError, RecursionError):
        message = None
    if message is None:
        message = response.reason_phrase or ("" if "<" in response.text else response.text)
    return f"{response.status_code}: {' '.join(message.split())[:200]}"


def message_of(content: Any) -> str | None:
    """Return the message of a JSON answer that is an error, as servers shape it; None where it has none."""
    match content:
        case {"error": {"message": message}} | {"error": {"detail": message}}:
            return str(message)
        case {"error": error} if error:
            return str(error)
        case {"object": "error", "message": message} | {"detail": message}:
            return str(message)
    return None


def _retry_after(response: "httpx.Response") -> float:
    """Return the seconds that the server asks to be left alone for; 0 where it does not say (or gives a date)."""
    text = response.headers.get("Retry-After", "")
    return min(float(text), 3600.0) if text.isascii() and text.isdigit() and len(text) < 6 else 0.0
