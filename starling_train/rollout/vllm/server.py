"""The rollout engine `vllm_server`: vLLM in processes of its own, asked by token ids over HTTP, and sent what trains.

Weights go through a folder that both see, and through vLLM's development routes, which its server has with
VLLM_SERVER_DEV_MODE=1. A server that was started again has its first weights: its metrics say when it was started,
which is asked before and after what is drawn, and what another start has drawn is drawn again.
"""

import hashlib
import re
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from starling_train.config.fields import UserError
from starling_train.config.sections import RolloutConfig
from starling_train.data.chat import Chat
from starling_train.models.causal_lm import CausalLM
from starling_train.models.patient_http import PatientHttp, reason_of, token_of
from starling_train.rollout.responses import Drawn, OnDone
from starling_train.rollout.vllm import probe, request, weights
from starling_train.rollout.vllm.folder import Folder, Held

COMPLETIONS, RPC, RESET, METRICS, MODELS = (
    "/v1/completions",
    "/collective_rpc",
    "/reset_prefix_cache",
    "/metrics",
    "/v1/models",
)
STARTED = re.compile(r"^process_start_time_seconds (\S+)$", re.MULTILINE)
START = (
    "start it as VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --generation-config vllm --logprobs-mode processed_logprobs"
)
WHOLE = ("stop", "length")  # how an answer ends that was not broken off
ROUNDS = 4  # times rollout.slots: so many prompts are answered before they are handed on
ATTEMPTS = 20  # at an answer that the server breaks off
_server: "VllmServer | None" = None


def respond(
    policy: CausalLM,
    chat: Chat,
    prompts: Sequence[list[int]],
    config: RolloutConfig,
    greedy: bool,
    keep_layer: int | None,
    indices: Sequence[int],
    on_done: OnDone,
) -> Drawn:
    """Draw a response for each prompt, as `responses.Engine`; no hidden states are kept, and no seed is sent."""
    server = opened(config)
    server.follow(policy)
    return server.draw(policy, chat, prompts, config, greedy, on_done)


def opened(config: RolloutConfig) -> "VllmServer":
    """Return this process's client of the server, made now if there is none."""
    global _server
    if _server is None or _server.is_closed or _server.url != (config.url or "").rstrip("/"):
        _server = VllmServer(config)
    return _server


def line(policy: CausalLM, config: RolloutConfig, longest: int) -> str:
    """Send the weights, and render in one line how close the server's log-probs are to the policy's.

    longest: tokens of a prompt with its answer. Raises UserError where the server takes fewer.
    """
    server = opened(config)
    server.follow(policy)
    server.check_room(longest)
    return f"rollout.engine=vllm_server: {server.url}; its log-probs are within {server.gap:.1g} of the policy's"


class VllmServer:
    """A client of one server, for one process of a run; the others have theirs, and one of them sends the weights.

    gap: of the last probe, nats.
    """

    def __init__(self, config: RolloutConfig):
        self.url, self.gap, self.is_closed = (config.url or "").rstrip("/"), 0.0, False
        self._config, self._folder = config, Folder(config, self.url)
        self._followed: Held | None = None
        self._frozen: tuple[int, str] = (0, "")
        self._copies = probe.Copies("vllm_server", f"serve model.path at {self.url}, or use another rollout.engine")
        self._pool = ThreadPoolExecutor(config.connections, "vllm-server")
        self._completions, self._reset = self._http(COMPLETIONS), self._http(RESET)
        # a weight that it cannot load is no passing failure
        self._rpc = self._http(RPC, lambda response: 422 if response.status_code == 500 else response.status_code)

    def _http(self, route: str, status_of: Callable[[Any], int] | None = None) -> PatientHttp:
        token = token_of(self._config.token_env)
        return PatientHttp("vLLM", "answer", "rollout", self.url + route, token, self._config, status_of=status_of)

    def follow(self, policy: CausalLM) -> None:
        """Let the server have the policy's weights as they are now. Raises UserError where its log-probs then differ.

        Whoever comes first of a run's processes sends them; the others find them there.
        """
        frozen, trained = self._digests(policy)
        with self._folder.lock:
            while self._folder.held() != (wanted := Held(frozen, trained, self._started())):
                held = self._folder.held()
                self._folder.forget()  # what it has is not known while it is sent something
                has_rest = held is not None and held._replace(trained=trained) == wanted
                self.gap = self._copies.give(policy, has_rest, lambda names: self._send(policy, names))
                if self._started() == wanted.started:
                    self._folder.remember(wanted)
        self._followed = wanted

    def _started(self) -> str:
        """Return when the server was started, by its metrics; waits for one that is away."""
        text = self._completions.text_of(self.url + METRICS)
        if not text:
            self._complete([1], {"max_tokens": 1})  # patiently
            text = self._completions.text_of(self.url + METRICS)
        found = STARTED.search(text)
        if not found:
            raise UserError(
                f"rollout.url: {self.url}{METRICS} has no process_start_time_seconds, by which a server that was "
                "started again is known; serve with --api-server-count 1 and without --disable-log-stats"
            )
        return found[1]

    def _digests(self, policy: CausalLM) -> tuple[str, str]:
        """Return digests of the weights that do not train, computed once, and of those that do."""
        names = weights.trained_names(policy)
        moving = {name: p for name, p in policy.named_parameters() if p.requires_grad or name in names}
        if self._frozen[0] != id(policy):
            rest = {name: p for name, p in policy.named_parameters() if name not in moving}
            self._frozen = id(policy), _digest(rest.items())
        return self._frozen[1], _digest(moving.items())

    def _send(self, policy: CausalLM, names: set[str] | None) -> float:
        with self._folder.written(weights.tensors(policy, names), weights.size_of(policy, names)) as path:
            asked = {"method": "reload_weights", "kwargs": {"weights_path": str(path)}}
            self._answer(self._rpc, asked, f"{START}, where {path.parent} is the same folder (rollout.weights_dir)")
        began = time.monotonic()
        while not self._answer(self._reset, {}, START).get("success", True):
            if time.monotonic() - began > max(self._config.patience_s, 1.0):
                raise UserError(
                    f"rollout.url: {self.url} is kept busy by others, so that its keys and values cannot be those of "
                    "new weights; give the run a server of its own"
                )
            time.sleep(0.1)
        return probe.gap(policy, self._logprobs)

    def _answer(self, http: PatientHttp, body: Any, remedy: str) -> dict[str, Any]:
        response = http.post(body)
        if response.status_code in (401, 403):
            raise http.refusal(response, f"put its key into {self._config.token_env} (rollout.token_env)")
        if response.status_code != 200:
            raise http.refusal(response, remedy)
        try:
            content = response.json() if response.content else {}
        except ValueError as error:
            raise UserError(f"rollout.url: {http.url} gave no JSON ({reason_of(response)}); {remedy}") from error
        return content if isinstance(content, dict) else {}

    def _complete(self, ids: Sequence[int], asked: dict[str, Any]) -> dict[str, Any]:
        """Return an answer that is whole; one that the server broke off, as when it ends, is asked for again."""
        body = {"prompt": list(ids), "return_token_ids": True, "add_special_tokens": False} | asked
        for _ in range(ATTEMPTS):
            content = self._answer(self._completions, body, "see what its log says")
            choices = content.get("choices")
            if not choices or not isinstance(choices[0], dict) or "token_ids" not in choices[0]:
                raise UserError(f"rollout.url: {self.url} gives no token ids; serve with vLLM 0.32 or later")
            if choices[0]["token_ids"] and choices[0].get("finish_reason") in WHOLE:
                return choices[0]
            time.sleep(0.5)
        raise UserError(f"rollout.url: {self.url} breaks off its answers; see what its log says")

    def _logprobs(self, ids: Sequence[int]) -> list[float]:
        choice = self._complete(ids, {"max_tokens": 1, "temperature": 0, "prompt_logprobs": 0})
        return [one[str(token)]["logprob"] for one, token in zip(choice["prompt_logprobs"][1:], ids[1:], strict=True)]

    def check_room(self, longest: int) -> None:
        """Raise UserError if the server takes fewer tokens than a prompt with its answer may have."""
        models = self._completions.told(self.url + MODELS).get("data")
        most = models[0].get("max_model_len") if models else None
        if isinstance(most, int) and longest > most:
            raise UserError(
                f"rollout.url: {self.url} takes {most:,} tokens, and a prompt with its answer may have {longest:,}; "
                f"serve with --max-model-len {longest}"
            )

    def draw(
        self,
        policy: CausalLM,
        chat: Chat,
        prompts: Sequence[list[int]],
        config: RolloutConfig,
        greedy: bool,
        on_done: OnDone,
    ) -> Drawn:
        """Draw a response for each prompt, in requests of their own; vLLM has a shared beginning once.

        What a server has drawn that was started anew meanwhile is drawn again, from the weights that it is sent.
        """
        asked, ends = request.sampling(policy, chat, config, greedy), request.Ends(chat, config)
        responses: list[list[int]] = [[] for _ in prompts]
        logprobs: list[list[float]] = [[] for _ in prompts]
        size = ROUNDS * config.slots
        for first in range(0, len(prompts), size):
            numbers = range(first, min(first + size, len(prompts)))
            while True:
                found = self._answers({number: prompts[number] for number in numbers}, asked)
                if self._has_followed():
                    break
                self.follow(policy)
            for number in numbers:
                drawn = found[number]["logprobs"]["token_logprobs"]
                responses[number], logprobs[number] = ends.cut(found[number]["token_ids"], drawn)
                on_done(number, responses[number])
        return Drawn(responses, None, logprobs)

    def _answers(self, prompts: dict[int, list[int]], asked: dict[str, Any]) -> dict[int, dict[str, Any]]:
        waiting = {self._pool.submit(self._complete, ids, asked): number for number, ids in prompts.items()}
        try:
            return {waiting[done]: done.result() for done in as_completed(waiting)}
        except BaseException:  # a signal too: nobody waits for what is under way
            self.close()
            raise

    def _has_followed(self) -> bool:
        """Return whether the server is still the one that got the weights. Raises UserError if others sent some."""
        assert self._followed is not None, "`follow` comes before"
        if self._started() != self._followed.started:
            return False
        if self._folder.held() not in (self._followed, None):
            raise UserError(
                f"rollout.url: another run has sent its weights to {self.url}; give each run a server of its own"
            )
        return True

    def close(self) -> None:
        """Let no request wait, and drop the connections."""
        self.is_closed = True
        for http in (self._completions, self._rpc, self._reset):
            http.close()
        self._pool.shutdown(wait=False, cancel_futures=True)


def _digest(parameters: Iterable[tuple[str, Any]]) -> str:
    text = "\n".join(f"{name} {weights.sum_of_bits(parameter)}" for name, parameter in parameters)
    return hashlib.sha256(text.encode()).hexdigest()
