"""The rollout engine `vllm_server`: vLLM in processes of its own, asked by token ids over HTTP, and sent what trains.

Weights go through a folder that both see, and vLLM's development routes, which its server has with
VLLM_SERVER_DEV_MODE=1. A server that was restarted has its first weights again: a probe before each rollout, and when
a server that was away answers again, finds that out, and it is sent them anew.
"""

import hashlib
import json
import re
import shutil
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import save_file

from starling_train.config.fields import UserError
from starling_train.config.sections import RolloutConfig
from starling_train.data.chat import Chat
from starling_train.files.json_object import read_json
from starling_train.files.lock import Lock
from starling_train.files.whole import write_text
from starling_train.models.causal_lm import CausalLM
from starling_train.models.patient_http import PatientHttp, reason_of, token_of
from starling_train.rollout.responses import Drawn, OnDone
from starling_train.rollout.vllm import probe, request, weights

MEMORY = Path("/dev/shm")
COMPLETIONS, RPC, RESET, METRICS = "/v1/completions", "/collective_rpc", "/reset_prefix_cache", "/metrics"
STARTED = re.compile(r"^process_start_time_seconds (\S+)$", re.MULTILINE)
START = "start it with VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --logprobs-mode processed_logprobs"
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
    if _server is None or _server.url != (config.url or "").rstrip("/"):
        _server = VllmServer(config)
    return _server


def line(policy: CausalLM, chat: Chat, config: RolloutConfig) -> str:
    """Send the weights, and render in one line how close the server's log-probs are to the policy's."""
    server = opened(config)
    server.follow(policy)
    return f"rollout.engine=vllm_server: {server.url}; its log-probs are within {server.gap:.1g} of the policy's"


class Held(NamedTuple):
    """What a server has been sent: digests of the weights that do not train and of those that do, and its start."""

    frozen: str
    trained: str
    started: str


class VllmServer:
    """A client of one server, for one process of a run; the others have theirs, and one of them sends the weights.

    gap: of the last probe, nats.
    """

    def __init__(self, config: RolloutConfig):
        self.url, self.gap = (config.url or "").rstrip("/"), 0.0
        self._config = config
        folder = Path(config.weights_dir) if config.weights_dir else MEMORY
        self._folder = folder if folder.is_dir() else Path(tempfile.gettempdir())
        name = hashlib.sha256(self.url.encode()).hexdigest()[:16]
        self._record = self._folder / f"starling-vllm-{name}.json"
        self._lock = Lock(self._record.with_suffix(".lock"))
        self._copies = probe.Copies("vllm_server", f"serve model.path at {self.url}, or use another rollout.engine")
        self._pool = ThreadPoolExecutor(config.connections, "vllm-server")
        self._completions = self._http(COMPLETIONS, "answer")
        self._rpc, self._reset = self._http(RPC, "answer"), self._http(RESET, "answer")

    def _http(self, route: str, gives: str) -> PatientHttp:
        token = token_of(self._config.token_env)
        return PatientHttp("vLLM", gives, "rollout", self.url + route, token, self._config)

    def follow(self, policy: CausalLM) -> None:
        """Let the server have the policy's weights as they are now. Raises UserError where its log-probs then differ.

        Whoever comes first of a run's processes sends them; the others find them there.
        """
        trained = weights.trained_names(policy)
        wanted = Held(*_digests(policy, trained), self._started())
        with self._lock:
            held = Held(**read_json(self._record)) if self._record.is_file() else None
            if held == wanted:
                return
            self._forget()  # what it has is not known while it is sent something
            knows_rest = held is not None and held._replace(trained=wanted.trained) == wanted
            self.gap = self._copies.give(policy, knows_rest, lambda names: self._send(policy, names))
            write_text(self._record, json.dumps(wanted._asdict()) + "\n")

    def _forget(self) -> None:
        self._record.unlink(missing_ok=True)

    def _started(self) -> str:
        """Return when the server was started, by its metrics: after that it has its first weights again."""
        found = STARTED.search(self._completions.text_of(self.url + METRICS))
        return found[1] if found else ""

    def _send(self, policy: CausalLM, names: set[str] | None) -> float:
        folder = Path(tempfile.mkdtemp(prefix="starling-vllm-", dir=self._folder))
        try:
            tensors = {name: tensor.cpu().contiguous() for name, tensor in weights.tensors(policy, names)}
            save_file(tensors, folder / "model.safetensors")
            folder.chmod(0o755)  # the server may be another user's
            (folder / "model.safetensors").chmod(0o644)
            asked = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
            self._answer(self._rpc, asked, f"{START}, where {self._folder} is the same folder (rollout.weights_dir)")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        while not self._answer(self._reset, {}, START).get("success", True):
            time.sleep(0.1)  # a request of another client is under way
        return probe.gap(policy, self._logprobs)

    def _answer(self, http: PatientHttp, body: Any, remedy: str) -> dict[str, Any]:
        response = http.post(body)
        if response.status_code != 200:
            raise http.refusal(response, remedy)
        try:
            content = response.json()
        except ValueError as error:
            raise UserError(f"rollout.url: {http.url} gave no JSON ({reason_of(response)}); {remedy}") from error
        return content if isinstance(content, dict) else {}

    def _complete(self, ids: Sequence[int], asked: dict[str, Any]) -> dict[str, Any]:
        body = {"prompt": list(ids), "return_token_ids": True, "add_special_tokens": False} | asked
        content = self._answer(self._completions, body, "see what its log says")
        choices = content.get("choices")
        if not choices or "token_ids" not in choices[0]:
            raise UserError(f"rollout.url: {self.url} gives no token ids; serve with vLLM 0.11 or later")
        return choices[0]

    def _logprobs(self, ids: Sequence[int]) -> list[float]:
        choice = self._complete(ids, {"max_tokens": 1, "temperature": 0, "prompt_logprobs": 0})
        return [one[str(token)]["logprob"] for one, token in zip(choice["prompt_logprobs"][1:], ids[1:], strict=True)]

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

        Where the server was started anew meanwhile, everything is drawn again, from the weights that it is sent.
        """
        asked, ends = request.sampling(policy, chat, config, greedy), request.Ends(chat, config)
        while True:
            before = self._started()
            responses: list[list[int]] = [[] for _ in prompts]
            logprobs: list[list[float]] = [[] for _ in prompts]
            waiting = {self._pool.submit(self._complete, ids, asked): number for number, ids in enumerate(prompts)}
            try:
                for done in as_completed(waiting):
                    choice, number = done.result(), waiting[done]
                    drawn = choice["logprobs"]["token_logprobs"]
                    responses[number], logprobs[number] = ends.cut(choice["token_ids"], drawn)
            except BaseException:
                for one in waiting:
                    one.cancel()
                raise
            if self._started() == before:
                break
            self.follow(policy)
        for number, response in enumerate(responses):
            on_done(number, response)
        return Drawn(responses, None, logprobs)


def _digests(policy: CausalLM, trained: set[str]) -> tuple[str, str]:
    """Return digests of the weights that do not train, and of those that do."""
    frozen, moving = hashlib.sha256(), hashlib.sha256()
    for name, parameter in policy.named_parameters():
        is_trained = parameter.requires_grad or name in trained
        bits = weights.sum_of_bits(parameter)
        (moving if is_trained else frozen).update(f"{name} {bits}".encode())
    return frozen.hexdigest(), moving.hexdigest()
