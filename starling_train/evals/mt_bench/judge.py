"""A judge: any server that speaks OpenAI's chat completions. Asked at temperature 0, on a few connections."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from starling_train.config.evaluate import JudgeConfig
from starling_train.config.fields import UserError
from starling_train.models.patient_http import PatientHttp, address, reason_of, token_of

FATAL = (401, 403, 404)  # the next request would fare no better
TRIES = 3  # judgments that may fail before one has succeeded
LONGEST_PAUSE_S = 60.0
KEY = "mt_bench.judge"


@dataclass(frozen=True)
class Reply:
    """A judge's reply.

    text: the judgment, or None.
    failure: why there is no text.
    prompt_tokens, completion_tokens: as the server counts them, 0 if it does not.
    model: the name that the server gives its model, which may include a version.
    """

    text: str | None
    failure: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    model: str = ""


Take = Callable[[str, Reply], None]


class Judge:
    """A client of the judge. Raises UserError for an unusable address or a missing key."""

    def __init__(self, config: JudgeConfig):
        self._config = config
        host = urlsplit(config.url).hostname or ""
        self._limit = "max_tokens"
        self._http = PatientHttp(
            "judge",
            "judgment",
            KEY,
            endpoint(config.url),
            key_of(config),
            config,
            is_outside=host != "localhost" and not host.startswith("127."),
            longest_pause_s=LONGEST_PAUSE_S,
        )

    def ask(self, messages: list[dict]) -> Reply:
        """Request one judgment. Raises UserError for what concerns every request: no answer in time, 401, 403, 404."""
        response = self._post(messages)
        if response.status_code == 400 and "max_completion_tokens" in response.text and self._limit == "max_tokens":
            self._limit = "max_completion_tokens"  # OpenAI's newer models know only this name
            response = self._post(messages)
        if response.status_code in FATAL:
            raise self._http.refusal(response, self._remedy(response))
        if response.status_code != 200:
            return Reply(None, reason_of(response))
        return _read(response)

    def ask_all(self, questions: dict[str, list[dict]], take: Take, grace_s: float) -> None:
        """Request every judgment and pass each to `take` as it comes, by key.

        One at a time until one succeeds; UserError if the first few do not (a wrong name, a parameter that the server
        does not know). When this is left early (a signal), the requests under way are waited for and taken, for up to
        grace_s seconds, because they are paid for.
        """
        keys = self._try_out(questions, take)
        with self._asking(take, grace_s) as submit:
            running: dict[Future, str] = {}
            while True:
                # no more than the connections: a request that has not begun must not begin after a signal
                while len(running) < self._config.connections and (key := next(keys, None)) is not None:
                    running[submit(key, questions[key])] = key
                if not running:
                    return
                done, _ = wait(running, return_when="FIRST_COMPLETED")
                for future in done:
                    take(running.pop(future), future.result())

    def _try_out(self, questions: dict[str, list[dict]], take: Take) -> Iterator[str]:
        """Request judgments until one succeeds; return the remaining keys."""
        keys = iter(questions)
        failed: dict[str, Reply] = {}
        for key in keys:
            reply = self.ask(questions[key])
            if reply.text is None:
                failed[key] = reply
                if len(failed) < min(TRIES, len(questions)):
                    continue
                raise UserError(
                    f"{KEY}: {self._config.model} at {self._http.url} gave no judgment ({reply.failure}); check "
                    f"{KEY}.model and {KEY}.url"
                )
            for name, given in (failed | {key: reply}).items():
                take(name, given)
            break
        return keys

    @contextmanager
    def _asking(self, take: Take, grace_s: float) -> Iterator[Callable[[str, list[dict]], Future]]:
        pool = ThreadPoolExecutor(self._config.connections, "judge")
        begun: dict[Future, str] = {}

        def submit(key: str, messages: list[dict]) -> Future:
            future = pool.submit(self.ask, messages)
            begun[future] = key
            return future

        try:
            yield submit
        except BaseException:
            self._http.give_up()
            for future in wait(begun, timeout=grace_s).done:
                if future.exception() is None:
                    take(begun[future], future.result())
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        self._http.close()

    def _post(self, messages: list[dict]) -> Any:
        config = self._config
        body = {"model": config.model, "messages": messages, "temperature": 0, self._limit: config.max_tokens}
        return self._http.post(body)

    def _remedy(self, response: Any) -> str:
        if response.status_code == 404:
            return f"check {KEY}.url and {KEY}.model"
        return (
            f"put the judge's key into the environment variable {self._config.key_env or f'that {KEY}.key_env names'}"
        )


def endpoint(url: str) -> str:
    """Return the address of chat completions below `https://host/v1`. Raises UserError."""
    address(url, f"{KEY}.url")
    return f"{url.rstrip('/').removesuffix('/chat/completions')}/chat/completions"


def key_of(config: JudgeConfig) -> str | None:
    """Return the key from the environment; None where none is configured. Raises UserError where it is not set."""
    if config.key_env is None:
        return None
    key = token_of(config.key_env)
    if key is None:
        raise UserError(
            f"{KEY}.key_env: the environment variable {config.key_env} is not set; put the judge's key into it, or "
            f"give {KEY}.key_env=null for a server that needs no key"
        )
    return key


def _read(response: Any) -> Reply:
    """Read a reply, if it is one: another program may listen at that address."""
    try:
        content = response.json()
        text = content["choices"][0]["message"]["content"]
        usage = content.get("usage") or {}
        counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return Reply(None, "an answer that is not a chat completion")
    if not isinstance(text, str):
        return Reply(None, "a chat completion without text")
    prompt, completion = (count if type(count) is int and count >= 0 else 0 for count in counts)
    return Reply(text, "", prompt, completion, model=str(content.get("model") or ""))
