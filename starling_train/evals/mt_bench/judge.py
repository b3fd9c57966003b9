"""A judge: any server that speaks OpenAI's chat completions, asked on a few connections."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from starling_train.config.evaluate import JudgeConfig
from starling_train.config.fields import UserError
from starling_train.evals.mt_bench.rating import CUT
from starling_train.models.patient_http import PatientHttp, address, message_of, reason_of, token_of
from starling_train.run import interruption

FATAL = (401, 402, 403, 404)  # the next request would fare no better
REFUSED = (400, 422)
TEXTS = ("text", "output_text")  # kinds of parts; others are reasoning
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
    ended: why the server ended it, in its words (`finish_reason`).
    """

    text: str | None
    failure: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    model: str = ""
    ended: str = ""


Take = Callable[[str, Reply], None]


class Judge:
    """A client of the judge. Raises UserError for an unusable address or a missing key."""

    def __init__(self, config: JudgeConfig):
        self._config = config
        host = urlsplit(config.url).hostname or ""
        self._limit = config.max_tokens_name
        self._http = PatientHttp(
            "judge",
            "judgment",
            KEY,
            endpoint(config.url),
            key_of(config),
            config,
            is_outside=host != "localhost" and not host.startswith("127."),
            longest_pause_s=LONGEST_PAUSE_S,
            token_header=config.key_header,
            status_of=status_of,
        )

    def ask(self, messages: list[dict]) -> Reply:
        """Request one judgment. Raises UserError for what concerns every request: no answer in time, 401 to 404."""
        limit = self._limit
        response = self._post(messages, limit)
        if status_of(response) in REFUSED and limit == "max_tokens" and "max_completion_tokens" in response.text:
            self._limit = "max_completion_tokens"  # OpenAI's newer models know only this name
            response = self._post(messages, self._limit)
        if (status := status_of(response)) in FATAL:
            raise self._http.refusal(response, self._remedy(status))
        return _read(response) if status == 200 else Reply(None, reason_of(response))

    def ask_all(self, questions: dict[str, list[dict]], take: Take, grace_s: float, *, is_known: bool = False) -> None:
        """Request every judgment and pass each to `take` as it comes, by key.

        One at a time until one succeeds; UserError if the first few do not (a wrong name, a parameter that the server
        does not know). When this is left early (a signal), the requests under way are waited for and taken, for up to
        grace_s seconds, because they are paid for; `take` may then get a key twice.

        is_known: the judge has given judgments before; what fails is then the question's fault.
        """
        running: dict[Future[Reply], str] = {}
        with self._pool(running, take, grace_s) as pool:

            def submit(key: str) -> Future[Reply]:
                with interruption.held():  # begun and not known would be lost
                    future = pool.submit(self.ask, questions[key])
                    running[future] = key
                return future

            keys = iter(questions) if is_known else self._try_out(questions, take, submit, running)
            while True:
                # no more than the connections: a request that has not begun must not begin after a signal
                while len(running) < self._config.connections and (key := next(keys, None)) is not None:
                    submit(key)
                if not running:
                    return
                done, _ = wait(running, return_when="FIRST_COMPLETED")
                for future in done:
                    take(running[future], future.result())
                    del running[future]

    def _try_out(
        self,
        questions: dict[str, list[dict]],
        take: Take,
        submit: Callable[[str], Future[Reply]],
        running: dict[Future[Reply], str],
    ) -> Iterator[str]:
        """Request judgments until one succeeds; return the remaining keys."""
        keys = iter(questions)
        failed: dict[str, Reply] = {}
        for key in keys:
            reply = (future := submit(key)).result()
            if reply.text is None:
                failed[key] = reply
                del running[future]
                if len(failed) < min(TRIES, len(questions)):
                    continue
                raise UserError(
                    f"{KEY}: {self._config.model} at {self._http.url} gave no judgment ({reply.failure}); "
                    f"{_advice(reply.failure)}"
                )
            for name, given in (failed | {key: reply}).items():
                take(name, given)
            del running[future]
            break
        return keys

    @contextmanager
    def _pool(self, running: dict[Future[Reply], str], take: Take, grace_s: float) -> Iterator[ThreadPoolExecutor]:
        pool = ThreadPoolExecutor(self._config.connections, "judge")
        try:
            yield pool
        except BaseException:
            self._http.give_up()
            for future in wait(running, timeout=grace_s).done:
                if future.exception() is None:
                    take(running[future], future.result())
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        self._http.close()

    def _post(self, messages: list[dict], limit: str) -> Any:
        config = self._config
        body: dict[str, Any] = {"model": config.model, "messages": messages, limit: config.max_tokens}
        if config.temperature is not None:
            body["temperature"] = config.temperature
        return self._http.post(body)

    def _remedy(self, status: int) -> str:
        if status == 404:
            return f"check {KEY}.url and {KEY}.model"
        if status == 402:
            return "see to the account that the judge's key belongs to"
        return (
            f"put the judge's key into the environment variable {self._config.key_env or f'that {KEY}.key_env names'}"
        )


def endpoint(url: str) -> str:
    """Return the address of chat completions below `https://host/v1`, before its query. Raises UserError."""
    parts = urlsplit(address(url, f"{KEY}.url"))
    path = f"{parts.path.rstrip('/').removesuffix('/chat/completions')}/chat/completions"
    return urlunsplit(parts._replace(path=path))


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


def status_of(response: Any) -> int:
    """Return the status of an answer: that of HTTP, or the one that a 200 with an error in it names (proxies)."""
    if response.status_code != 200:
        return int(response.status_code)
    match _json(response):
        case (
            {"error": {"code": code}} | {"object": "error", "code": code} | {"choices": [{"error": {"code": code}}, *_]}
        ):
            named = int(code) if str(code).isdecimal() and len(str(code)) == 3 else 200
            return named if named >= 400 else 200
    return 200


def _advice(failure: str) -> str:
    """Say what to do about a judge that gives no judgments."""
    if "temperature" in failure:
        return f"give {KEY}.temperature=null, which sends none"
    if "max_tokens" in failure or "max_completion_tokens" in failure:
        return f"raise {KEY}.max_tokens, or give {KEY}.max_tokens_name as the judge calls it"
    return f"check {KEY}.model and {KEY}.url"


def _json(response: Any) -> Any:
    try:
        return response.json()
    except (ValueError, RecursionError):
        return None


def _read(response: Any) -> Reply:
    """Read a reply, if it is one: another program may listen at that address, or a proxy tell of an error."""
    content = _json(response)
    if message_of(content) is not None:
        return Reply(None, reason_of(response))
    match content:
        case {"choices": [{"error": error}, *_]} if error:
            return Reply(None, f"200: {' '.join(str(message_of({'error': error})).split())[:200]}")
        case {"choices": [{"message": {"content": found}, **choice}, *_]}:
            text = _text(found)
        case _:
            return Reply(None, "an answer that is not a chat completion")
    usage = content.get("usage")
    counts = [usage.get(name) if isinstance(usage, dict) else 0 for name in ("prompt_tokens", "completion_tokens")]
    prompt, completion = (count if type(count) is int and count >= 0 else 0 for count in counts)
    ended = str(choice.get("finish_reason") or "")
    failure = "" if text else "a chat completion without text"
    if failure and ended.lower() in CUT:
        failure += f": cut at {KEY}.max_tokens, before it said anything"
    return Reply(text or None, failure, prompt, completion, str(content.get("model") or ""), ended)


def _text(content: Any) -> str:
    """Return a message's text, of which some servers make a list of parts; "" where it has none."""
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    texts = [part.get("text") for part in parts if isinstance(part, dict) and part.get("type") in TEXTS]
    text = "".join(text for text in texts if isinstance(text, str))
    return text if text.strip() else ""
