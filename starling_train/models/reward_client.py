"""A reward model that is served: the same `.score(conversations)`, over HTTP.

Requests run in parallel on a few connections. One that fails in a way that may pass (no connection, no answer in time,
429, 5xx) is sent again after a growing pause, until `patience_s` seconds have gone since it first failed; so a server
can be restarted in the middle of a step. Then, and for an answer that will not change (401, another protocol),
an error of one line is raised.
"""

import itertools
import math
import os
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from starling_train.config import RewardConfig, UserError

if TYPE_CHECKING:
    import httpx

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 5.0
PASSING = (408, 425, 429, 500, 502, 503, 504)


class RewardServerError(UserError):
    """The server gives no scores, and asking once more would not help: the run should keep its state and end."""


class RewardClient:
    """Scores conversations on a server. tokenizer: only for OpenRLHF's protocol, its chat template makes the text."""

    def __init__(self, config: RewardConfig, tokenizer: Any = None) -> None:
        import httpx

        self.truncated = 0  # answers that lost their beginning, as far as the server tells
        self._url = _endpoint(config)
        self._openrlhf, self._tokenizer = config.protocol == "openrlhf", tokenizer
        self._per_request, self._patience_s = config.conversations_per_request, config.patience_s
        self._silent = threading.Event()  # set once a person knows that the server is away
        self._given_up = threading.Event()  # set when one request has failed for good: the others need not wait
        # the environment's proxies are for the world outside, a reward server is inside
        self._http = httpx.Client(
            headers=_authorisation(config.token_env),
            timeout=config.timeout_s,
            limits=httpx.Limits(max_connections=config.connections, max_keepalive_connections=config.connections),
            trust_env=False,
        )
        self._pool = ThreadPoolExecutor(config.connections, "reward-client")

    def score(self, conversations: Sequence[list[dict]]) -> list[float]:
        """One score a conversation, in order. Raises RewardServerError."""
        starts = range(0, len(conversations), self._per_request)
        futures = [self._pool.submit(self._ask, conversations[i : i + self._per_request]) for i in starts]
        try:
            answers = [future.result() for future in futures]
        except BaseException:
            self._given_up.set()
            for future in futures:
                future.cancel()
            raise
        self.truncated += sum(truncated for _, truncated in answers)
        return list(itertools.chain.from_iterable(scores for scores, _ in answers))

    def score_each(self, conversations: Sequence[list[dict]]) -> list[float | UserError]:
        """As `RewardModel.score_each`: the server names no single conversation, so they are all right or it raises."""
        return list(self.score(conversations))

    def check(self) -> None:
        """Ask for nothing, so that a wrong address or token is told before a run starts. Raises RewardServerError."""
        if not self._openrlhf:
            self._ask([])

    def close(self) -> None:
        self._given_up.set()
        self._pool.shutdown(cancel_futures=True)
        self._http.close()

    def _ask(self, conversations: Sequence[list[dict]]) -> tuple[list[float], int]:
        """(scores, how many answers lost their beginning)."""
        response = self._post(self._body(conversations))
        if response.status_code != 200:
            raise RewardServerError(
                f"reward.url: {self._url} refuses ({_reason(response)}); {_remedy(response.status_code)}"
            )
        scores = _scores(response, "rewards" if self._openrlhf else "scores", len(conversations), self._url)
        truncated = response.json().get("truncated")
        return scores, truncated if isinstance(truncated, int) else 0

    def _body(self, conversations: Sequence[list[dict]]) -> dict[str, Any]:
        if not self._openrlhf:
            return {"conversations": conversations}
        render = self._tokenizer.apply_chat_template
        queries = [render(messages, tokenize=False) for messages in conversations]
        prompts = [render(messages[:-1], tokenize=False, add_generation_prompt=True) for messages in conversations]
        return {"query": queries, "prompts": prompts, "labels": [""] * len(queries)}

    def _post(self, body: dict[str, Any]) -> "httpx.Response":
        """The first answer that is not a passing failure. Raises RewardServerError when patience is at its end."""
        import httpx

        began, pause = None, FIRST_PAUSE_S
        while True:
            try:
                response = self._http.post(self._url, json=body)
                if response.status_code not in PASSING:
                    if self._silent.is_set():
                        self._silent.clear()
                        print(f"reward server {self._url} answers again", file=sys.stderr, flush=True)
                    return response
                reason = _reason(response)
            except httpx.TransportError as error:
                reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            began = began or time.monotonic()
            left = began + self._patience_s - time.monotonic()
            if left <= 0 or self._given_up.is_set():
                raise RewardServerError(
                    f"reward.url: {self._url} gave no scores for {self._patience_s:g} s ({reason}); start the server "
                    "and run the same command again, or raise reward.patience_s"
                )
            self._tell(reason)
            self._given_up.wait(min(pause, left))
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def _tell(self, reason: str) -> None:
        if not self._silent.is_set():
            self._silent.set()
            print(
                f"reward server {self._url}: {reason}; trying again for up to {self._patience_s:g} s",
                file=sys.stderr,
                flush=True,
            )


def token_of(variable: str | None) -> str | None:
    """The bearer token in an environment variable, or None. Raises UserError if no header can carry it."""
    token = os.environ.get(variable, "").strip() if variable else ""
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise UserError(f"{variable}: the token has spaces or characters beyond ASCII, which HTTP cannot carry")
    return token or None


def _authorisation(variable: str | None) -> dict[str, str]:
    token = token_of(variable)
    return {"Authorization": f"Bearer {token}"} if token else {}


def _endpoint(config: RewardConfig) -> str:
    import httpx

    try:
        url = httpx.URL(config.url or "")
    except httpx.InvalidURL as error:
        raise UserError(f"reward.url: '{config.url}' is no address ({error}); give http://HOST:PORT") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise UserError(f"reward.url: '{config.url}' is no address; give http://HOST:PORT")
    return str(url) if config.protocol == "openrlhf" else f"{str(url).rstrip('/').removesuffix('/score')}/score"


def _scores(response: "httpx.Response", key: str, count: int, url: str) -> list[float]:
    """The scores of an answer, checked: another program may listen at that address."""
    try:
        scores = response.json()[key]
        assert isinstance(scores, list)
        scores = [float(score[0] if isinstance(score, list) else score) for score in scores]
    except (ValueError, KeyError, TypeError, IndexError, AssertionError, RecursionError, OverflowError) as error:
        raise RewardServerError(
            f"reward.url: {url} gave no {key}; is it a reward server? See reward.protocol"
        ) from error
    if len(scores) != count or not all(map(math.isfinite, scores)):
        raise RewardServerError(
            f"reward.url: {url} gave {len(scores)} {key} for {count} conversations, or some not finite"
        )
    return scores


def _reason(response: "httpx.Response") -> str:
    """Status and, where the server says one, its message, on one line."""
    try:
        said = str(response.json()["error"])
    except (ValueError, KeyError, TypeError, RecursionError):
        said = response.reason_phrase
    return f"{response.status_code}: {' '.join(said.split())[:200]}"


def _remedy(status: int) -> str:
    if status in (401, 403):
        return "set the environment variable that reward.token_env names to the server's token"
    if status == 413:
        return "lower reward.conversations_per_request, or raise the server's max_body_mb"
    return "check reward.url and reward.protocol"
