"""A reward model that is served: the same `.score(conversations)`, over HTTP.

Requests run in parallel on a few connections. One that fails temporarily (no connection, no answer in time, 429, 5xx)
is sent again after a growing pause, until `patience_s` seconds have gone since it first failed; so a server can be
restarted in the middle of a step. After that, and for an answer that will not change (401, another protocol), an error
of one line is raised.
"""

import itertools
import math
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Any, NamedTuple

from starling_train.config.fields import UserError
from starling_train.config.sections import ScorerConfig, about_term
from starling_train.models.patient_http import PatientHttp, reason_of, token_of
from starling_train.rewards import admission, items, server_facts
from starling_train.rewards.admission import Admission
from starling_train.rewards.protocols import PROTOCOLS
from starling_train.run.runtime import Runtime

LOCATION, SCORED_BY = "url", ()
OF_ONE_ITEM = (400, 413, 422, 424)  # statuses that a server of classifiers gives for one item among others


def check(config: ScorerConfig, weights: bool = True) -> None:
    """Ask the server, so that a wrong address or token is reported before a run starts. weights=False: do not."""
    if weights:
        client = RewardClient(config)
        client.check()
        client.close()


def load(config: ScorerConfig, runtime: Runtime | None = None) -> "RewardClient":
    """Open a client of a server that answers. Raises UserError."""
    client = RewardClient(config, is_quiet=runtime is not None and not runtime.is_main)
    client.check()
    client.learn()
    return client


def identity(config: ScorerConfig, identify: Any = None, weights: bool = True) -> dict[str, Any]:
    """Identify the server: what it serves is known by its address alone."""
    return {"url": config.url, "protocol": config.protocol}


def columns(config: ScorerConfig) -> tuple[str, ...]:
    """Return no names: a server is sent conversations only."""
    return ()


def admit(config: ScorerConfig, prompts: Sequence[list[dict]], rows: Sequence[dict[str, Any]]) -> Admission:
    """Refuse what the template refuses that makes what is sent; the rest is known to the server alone.

    Raises UserError if the template refuses all.
    """
    if config.protocol == "starling":
        return Admission()
    source = f"reward.tokenizer: {config.tokenizer}"
    if not PROTOCOLS[config.protocol].is_classifier:
        return Admission(admission.refusals(prompts, items.writer(config).item, source))
    return admission.by_reader(items.reader_of(config), prompts, source)


class Answer(NamedTuple):
    """What one request gave.

    scores: nan for what is left out. truncated, shortened: as in `scorer.Scorer`, as far as the server tells.
    refused: the server's reasons by index of the item, where it refuses one among others.
    """

    scores: list[float]
    truncated: int = 0
    shortened: int = 0
    refused: Mapping[int, str] = MappingProxyType({})


class RewardClient:
    """Scores conversations on a server.

    writer: makes what is sent; None: by `reward.protocol`. is_quiet: nothing is said by this process.

    facts: what is known of the server, after `learn`.
    """

    budget = None  # the memory is the server's
    may_leave_out, mark = False, None

    def __init__(self, config: ScorerConfig, writer: items.Writer | None = None, is_quiet: bool = False) -> None:
        self._told_truncated = self._told_shortened = 0
        self._config, self._is_quiet = config, is_quiet
        self._protocol = PROTOCOLS[config.protocol]
        self._url = self._protocol.endpoint(config.url or "")
        self._writer = writer or items.writer(config)
        self._per_request = config.conversations_per_request
        self._model = config.served_model
        self.facts: server_facts.Facts = {}
        self._is_told = False
        token = token_of(config.token_env)
        self._http = PatientHttp(
            "reward server", "scores", config.section, self._url, token, config,
            token_header=config.token_header, on_return=self._compare,
        )  # fmt: skip
        self._pool = ThreadPoolExecutor(config.connections, "reward-client")

    @property
    def truncated(self) -> int:
        """Answers so far that lost their beginning, as far as it is known."""
        return self._told_truncated + self._writer.truncated

    @property
    def shortened(self) -> int:
        """Conversations so far that did."""
        return self._told_shortened + self._writer.shortened

    def score(
        self, conversations: Sequence[list[dict]], columns: Sequence[dict[str, Any]] | None = None
    ) -> list[float]:
        """Return one score a conversation, in order; nan for one that the server alone refuses. Raises UserError."""
        answers = self._ask_all([self._writer.item(messages) for messages in conversations])
        return list(itertools.chain.from_iterable(answer.scores for answer in answers))

    def score_each(
        self, conversations: Sequence[list[dict]], columns: Sequence[dict[str, Any]] | None = None
    ) -> list[float | UserError]:
        """Score as `RewardModel.score_each`; a server that names no single conversation gives all, or it raises."""
        results: list[float | UserError] = [math.nan] * len(conversations)
        written: dict[int, Any] = {}
        for index, messages in enumerate(conversations):
            try:
                written[index] = self._writer.item(messages)
            except UserError as error:
                results[index] = error
        indices = iter(written)
        for answer in self._ask_all(list(written.values())):
            for position, score in enumerate(answer.scores):
                reason = answer.refused.get(position)
                results[next(indices)] = UserError(f"the reward server refuses it ({reason})") if reason else score
        return results

    def check(self) -> None:
        """Send an empty request, or to a server of classifiers a few made-up conversations. Raises UserError."""
        if self._config.protocol == "starling":
            self._ask([])
        if not self._protocol.is_classifier:
            return
        server_facts.told(self._http, self._config)
        scores = self.score(server_facts.made_up())
        line = server_facts.check_raw(scores, self._url)
        if line and not self._is_quiet:
            print(f"warning: {about_term(self._config.section, line)}", file=sys.stderr, flush=True)

    def learn(self) -> None:
        """Find out which server it is, for `facts`."""
        self.facts = server_facts.told(self._http, self._config) | self._probed()

    def close(self) -> None:
        self._http.give_up()
        self._pool.shutdown(cancel_futures=True)
        self._http.close()

    def _probed(self) -> server_facts.Facts:
        (score,) = self._ask([self._writer.item(server_facts.made_up()[0])]).scores
        return {server_facts.PROBE: round(score, 6)} if math.isfinite(score) else {}

    def _compare(self) -> None:
        """Say if a server that was away has come back as another one."""
        if not self.facts or self._is_quiet:
            return
        now = server_facts.told(self._http, self._config)
        known = {name: value for name, value in self.facts.items() if name != server_facts.PROBE}
        if now and (different := server_facts.differences(known, now)):
            print(
                f"warning: {self._config.section}.url: {self._url} has come back as another server "
                f"({'; '.join(different)}); scores before and after may not compare",
                file=sys.stderr,
                flush=True,
            )

    def _ask_all(self, written: Sequence[Any]) -> list[Answer]:
        """Ask for the scores of items, a few a request. Raises UserError."""
        starts = range(0, len(written), self._per_request)
        futures = [self._pool.submit(self._ask, written[i : i + self._per_request]) for i in starts]
        try:
            answers = [future.result() for future in futures]
        except BaseException:
            self._http.give_up()
            for future in futures:
                future.cancel()
            raise
        refused = [reason for answer in answers for reason in answer.refused.values()]
        if refused and len(refused) == len(written):
            raise UserError(
                f"reward.url: {self._url} refuses all {len(written)} conversations ({refused[0]}); check it"
            )
        if refused and not self._is_told and not self._is_quiet:
            self._is_told = True
            print(
                f"reward server {self._url} refuses a conversation ({refused[0]}): left out",
                file=sys.stderr,
                flush=True,
            )
        self._told_truncated += sum(answer.truncated for answer in answers)
        self._told_shortened += sum(answer.shortened for answer in answers)
        return answers

    def _ask(self, written: Sequence[Any]) -> Answer:
        """Ask for the scores of one request's items. Raises UserError."""
        response = self._http.post(self._protocol.body(written, self._model))
        if response.status_code in OF_ONE_ITEM and self._protocol.is_classifier:
            if len(written) == 1:
                return Answer([math.nan], refused={0: reason_of(response)})
            return _joined([self._ask([item]) for item in written])
        if response.status_code != 200:
            raise self._http.refusal(response, _remedy(response.status_code))
        try:
            answer = response.json()
        except (ValueError, RecursionError):
            answer = None
        scores = self._protocol.scores(answer, len(written), self._url)
        counts = (answer.get(name) if isinstance(answer, dict) else 0 for name in ("truncated", "shortened"))
        truncated, shortened = (count if isinstance(count, int) else 0 for count in counts)
        return Answer(scores, truncated, shortened)


def _joined(answers: Sequence[Answer]) -> Answer:
    """Put together the answers of single items."""
    refused = {index: answer.refused[0] for index, answer in enumerate(answers) if answer.refused}
    return Answer([answer.scores[0] for answer in answers], refused=refused)


def _remedy(status: int) -> str:
    if status in (401, 403):
        return "set the environment variable that reward.token_env names to the server's token"
    if status == 413:
        return "lower reward.conversations_per_request, or raise the server's max_body_mb"
    return "check reward.url and reward.protocol"
