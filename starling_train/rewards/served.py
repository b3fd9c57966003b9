"""A reward model that is served: the same `.score(conversations)`, over HTTP.

Requests run in parallel on a few connections. One that fails temporarily (no connection, no answer in time, 429, 5xx)
is sent again after a growing pause, until `patience_s` seconds have gone since it first failed; so a server can be
restarted in the middle of a step. After that, and for an answer that will not change (401, another protocol), an error
of one line is raised.
"""

import itertools
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from starling_train.config.fields import UserError, given
from starling_train.config.sections import RewardConfig
from starling_train.models.patient_http import PatientHttp, address, token_of
from starling_train.models.source import ModelSource
from starling_train.rewards.admission import Admission, first_words, refusals
from starling_train.run.runtime import Runtime

if TYPE_CHECKING:
    import httpx


LOCATION, HOLDS_MEMORY, SCORED_BY = "url", False, ()


def check(config: RewardConfig, weights: bool = True) -> None:
    """Ask the server, so that a wrong address or token is reported before a run starts. weights=False: do not."""
    if weights:
        load(config).close()


def load(config: RewardConfig, runtime: Runtime | None = None) -> "RewardClient":
    """Open a client of a server that answers. Raises UserError."""
    client = RewardClient(config, _tokenizer(config) if config.protocol == "openrlhf" else None)
    client.check()
    return client


def _tokenizer(config: RewardConfig) -> Any:
    """Load the tokenizer whose chat template makes the text for OpenRLHF's protocol. Raises UserError."""
    source = ModelSource.open(given(config.tokenizer), "reward.tokenizer", weights=False, needs_config=False)
    if not source.tokenizer.chat_template:
        raise UserError(
            f"reward.tokenizer: {source.directory} has no chat template, which makes the text for "
            "reward.protocol=openrlhf; add chat_template.jinja to it"
        )
    return source.tokenizer


def texts_of(messages: Sequence[dict], tokenizer: Any) -> tuple[str, str]:
    """Render (a conversation, its prompt) by a tokenizer's chat template. Raises UserError if it refuses them."""
    from jinja2 import TemplateError

    render = tokenizer.apply_chat_template
    try:
        whole = render(list(messages), tokenize=False)
        return whole, render(list(messages[:-1]), tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise UserError(
            f"reward.tokenizer: its chat template refuses {first_words(messages)} ({error}); leave such rows out"
        ) from error


def identity(config: RewardConfig, identify: Any = None, weights: bool = True) -> dict[str, Any]:
    """Identify the server: what it serves is known by its address alone."""
    return {"url": config.url, "protocol": config.protocol}


def columns(config: RewardConfig) -> tuple[str, ...]:
    """Return no names: a server is sent conversations only."""
    return ()


def admit(config: RewardConfig, prompts: Sequence[list[dict]], rows: Sequence[dict[str, Any]]) -> Admission:
    """Refuse what the template refuses that makes our text (openrlhf); the rest is known to the server alone.

    Raises UserError if the template refuses all.
    """
    if config.protocol != "openrlhf":
        return Admission()
    tokenizer = _tokenizer(config)
    refused = refusals(
        prompts, lambda conversation: texts_of(conversation, tokenizer), f"reward.tokenizer: {config.tokenizer}"
    )
    return Admission(refused)


class RewardClient:
    """Scores conversations on a server. tokenizer: only for OpenRLHF's protocol, its chat template makes the text."""

    budget = None  # the memory is the server's
    may_leave_out, mark = False, None

    def __init__(self, config: RewardConfig, tokenizer: Any = None) -> None:
        # answers that lost their beginning, conversations that did, as far as the server reports
        self.truncated = self.shortened = 0
        self._url = _endpoint(config)
        self._openrlhf, self._tokenizer = config.protocol == "openrlhf", tokenizer
        self._per_request = config.conversations_per_request
        token = token_of(config.token_env)
        self._http = PatientHttp("reward server", "scores", "reward", self._url, token, config)
        self._pool = ThreadPoolExecutor(config.connections, "reward-client")

    def score(
        self, conversations: Sequence[list[dict]], columns: Sequence[dict[str, Any]] | None = None
    ) -> list[float]:
        """Return one score a conversation, in order. Raises UserError."""
        starts = range(0, len(conversations), self._per_request)
        futures = [self._pool.submit(self._ask, conversations[i : i + self._per_request]) for i in starts]
        try:
            answers = [future.result() for future in futures]
        except BaseException:
            self._http.give_up()
            for future in futures:
                future.cancel()
            raise
        self.truncated += sum(truncated for _, truncated, _ in answers)
        self.shortened += sum(shortened for _, _, shortened in answers)
        return list(itertools.chain.from_iterable(scores for scores, _, _ in answers))

    def score_each(
        self, conversations: Sequence[list[dict]], columns: Sequence[dict[str, Any]] | None = None
    ) -> list[float | UserError]:
        """Score as `RewardModel.score_each`; the server names no single conversation: all are right, or it raises."""
        return list(self.score(conversations))

    def check(self) -> None:
        """Send an empty request. Raises UserError."""
        if not self._openrlhf:
            self._ask([])

    def close(self) -> None:
        self._http.give_up()
        self._pool.shutdown(cancel_futures=True)
        self._http.close()

    def _ask(self, conversations: Sequence[list[dict]]) -> tuple[list[float], int, int]:
        """Return (scores, how many answers lost their beginning, how many conversations did)."""
        response = self._http.post(self._body(conversations))
        if response.status_code != 200:
            raise self._http.refusal(response, _remedy(response.status_code))
        scores = _scores(response, "rewards" if self._openrlhf else "scores", len(conversations), self._url)
        counts = (response.json().get(name) for name in ("truncated", "shortened"))
        truncated, shortened = (count if isinstance(count, int) else 0 for count in counts)
        return scores, truncated, shortened

    def _body(self, conversations: Sequence[list[dict]]) -> dict[str, Any]:
        if not self._openrlhf:
            return {"conversations": conversations}
        texts = [texts_of(messages, self._tokenizer) for messages in conversations]
        queries, prompts = [whole for whole, _ in texts], [prompt for _, prompt in texts]
        return {"query": queries, "prompts": prompts, "labels": [""] * len(queries)}


def _endpoint(config: RewardConfig) -> str:
    url = address(config.url or "", "reward.url")
    return url if config.protocol == "openrlhf" else f"{url.rstrip('/').removesuffix('/score')}/score"


def _scores(response: "httpx.Response", key: str, count: int, url: str) -> list[float]:
    """Check and return the scores of an answer: another program may listen at that address.

    nan for null and for what is not finite: one odd answer is left out, as one of a model in this process is.
    """
    try:
        scores = response.json()[key]
        assert isinstance(scores, list)
        scores = [score[0] if isinstance(score, list) else score for score in scores]
        scores = [math.nan if score is None else float(score) for score in scores]
    except (ValueError, KeyError, TypeError, IndexError, AssertionError, RecursionError, OverflowError) as error:
        raise UserError(f"reward.url: {url} gave no {key}; is it a reward server? See reward.protocol") from error
    if len(scores) != count:
        raise UserError(f"reward.url: {url} gave {len(scores)} {key} for {count} conversations; check reward.protocol")
    return [score if math.isfinite(score) else math.nan for score in scores]


def _remedy(status: int) -> str:
    if status in (401, 403):
        return "set the environment variable that reward.token_env names to the server's token"
    if status == 413:
        return "lower reward.conversations_per_request, or raise the server's max_body_mb"
    return "check reward.url and reward.protocol"
