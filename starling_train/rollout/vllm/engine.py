"""The rollout engine `vllm`: vLLM in this process, on a copy of the weights that follows those that train.

vLLM is made from the policy's configuration alone; its first weights are the live ones, all of them, and after an
update it is given what trains (`weights`). A probe compares log-probs after each copy. One engine a process:
it serves whichever policy of its kind is asked for.
"""

import copy
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any
from weakref import ref

import torch
from torch import distributed as dist

from starling_train.config.fields import UserError
from starling_train.config.sections import RolloutConfig
from starling_train.data.chat import Chat
from starling_train.models.causal_lm import CausalLM
from starling_train.models.source import first_line
from starling_train.rollout.responses import Drawn, OnDone
from starling_train.rollout.vllm import probe, request, weights

# of vLLM, before it is imported: cores as they are, and only its errors
SETTINGS = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
SHARE_OF_FREE = 0.9  # of a GPU's memory
AS_LONG_AS_FITS = -1  # of max_model_len: as the keys and values have room for
_engine: "VllmEngine | None" = None


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
    """Draw a response for each prompt, as `responses.Engine`; no hidden states are kept.

    On a GPU a response depends on its index and the global seed, on a CPU on the seed and on all prompts of the call.
    """
    if indices and indices[0]:  # processes share one seed, but must not draw the same numbers for different prompts
        torch.manual_seed(torch.initial_seed() + indices[0])
    seed = int(torch.randint(2**31, ()))
    engine = opened(policy, chat, config)
    with engine.awake():
        engine.follow(policy)
        return engine.draw(policy, chat, prompts, config, greedy, [seed + index for index in indices], on_done)


def opened(policy: CausalLM, chat: Chat, config: RolloutConfig) -> "VllmEngine":
    """Return this process's engine for models like the policy, made now if there is none. Raises UserError."""
    global _engine
    if _engine is None or _engine.kind != VllmEngine.kind_of(policy, config):
        close()
        _engine = VllmEngine(policy, chat, config)
    return _engine


def close() -> None:
    """Free the engine, if there is one, while the processes of the run still know each other: vLLM ends their group."""
    global _engine
    if _engine is not None:
        _engine.close()
    _engine = None


def line(policy: CausalLM, chat: Chat, config: RolloutConfig, longest: int) -> str:
    """Open the engine, and render in one line what it is and how close its log-probs are to the policy's.

    longest: tokens of a prompt with its answer. Raises UserError where its keys and values have no room for them.
    """
    engine = opened(policy, chat, config)
    engine.check_room(longest)
    with engine.awake():
        engine.follow(policy)
    import vllm

    return (
        f"rollout.engine=vllm: vLLM {vllm.__version__}, up to {engine.longest:,} tokens a sequence in "
        f"{config.cache_gb:g} GB; its log-probs are within {engine.gap:.1g} of the policy's"
    )


class VllmEngine:
    """vLLM with weights of its own. kind: what it was made for.

    longest: tokens of a sequence.
    gap: of the last probe, nats.
    """

    def __init__(self, policy: CausalLM, chat: Chat, config: RolloutConfig):
        self.kind, self.gap = self.kind_of(policy, config), 0.0
        self._followed: Callable[[], CausalLM | None] = lambda: None  # the policy, as long as it lives
        self._state: tuple[int, ...] = ()
        self._copies = probe.Copies("vllm", "use slots")
        self._on_gpu, self._is_asleep = policy.device.type == "cuda", False
        self._folder = tempfile.TemporaryDirectory(prefix="starling-vllm-")
        told = copy.deepcopy(policy.config)
        told.eos_token_id = sorted(chat.end_ids)  # vLLM keeps the model's own from the first tokens, beside ours
        told.save_pretrained(self._folder.name)
        chat.save(self._folder.name)
        self._llm = _make(self._folder.name, policy, config)
        (module,) = self._llm.collective_rpc(_module_of_model)
        if ".transformers" in module:  # vLLM has then changed the class of the policy itself
            self.close()
            raise UserError(
                f"rollout.engine: vLLM has no {policy.config.model_type} of its own, and would run that of this "
                "process; use vllm_server, or slots"
            )
        self.longest: int = self._llm.llm_engine.vllm_config.model_config.max_model_len
        self._cache_gb = config.cache_gb

    @staticmethod
    def kind_of(policy: CausalLM, config: RolloutConfig) -> tuple[str, ...]:
        """Return what an engine depends on beside weights."""
        return (policy.config.to_json_string(), str(policy.dtype), str(policy.device), str(config.cache_gb))

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Have the weights and the keys and values on the GPU; before and after, they leave it to the update."""
        if not self._on_gpu:
            yield
            return
        if self._is_asleep:
            self._llm.wake_up()
        self._is_asleep = False
        yield
        self._llm.sleep(level=1)  # not after an error, which it would hide
        self._is_asleep = True

    def follow(self, policy: CausalLM) -> None:
        """Take the policy's weights as they are now, if they have changed. Raises UserError if vLLM's then differ."""
        state = weights.fingerprint(policy)
        is_known = self._followed() is policy
        if is_known and state == self._state:
            return
        self.gap = self._copies.give(policy, is_known, lambda names: self._load(policy, names))
        self._followed, self._state = ref(policy), state

    def _load(self, policy: CausalLM, names: set[str] | None) -> float:
        self._llm.collective_rpc(_let_experts_pack_again, args=(weights.layers_with_experts(policy, names),))
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights.tensors(policy, names)})
        self._llm.collective_rpc(_renew_tied_head)
        assert self._llm.reset_prefix_cache(), "nothing is under way"
        return probe.gap(policy, self._logprobs)

    def _logprobs(self, ids: Sequence[int]) -> list[float]:
        from vllm import SamplingParams

        asked = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        (found,) = self._llm.generate([{"prompt_token_ids": list(ids)}], asked, use_tqdm=False)
        return [one[token].logprob for one, token in zip(found.prompt_logprobs[1:], ids[1:], strict=True)]

    def draw(
        self,
        policy: CausalLM,
        chat: Chat,
        prompts: Sequence[list[int]],
        config: RolloutConfig,
        greedy: bool,
        seeds: Sequence[int],
        on_done: OnDone,
    ) -> Drawn:
        """Draw a response for each prompt, each as soon as there is room."""
        self.check_room(max(map(len, prompts), default=0) + config.max_new_tokens)
        asked, ends = request.sampling(policy, chat, config, greedy), request.Ends(chat, config)
        engine = self._llm.llm_engine
        responses: list[list[int]] = [[] for _ in prompts]
        logprobs: list[list[float]] = [[] for _ in prompts]
        waiting, running = iter(enumerate(prompts)), set[str]()
        try:
            while True:
                for number, prompt in islice(waiting, config.slots - len(running)):
                    running.add(str(number))
                    engine.add_request(
                        str(number), {"prompt_token_ids": list(prompt)}, self._asked(asked, seeds[number])
                    )
                if not running:
                    break
                for found in engine.step():
                    if found.finished:
                        number, output = int(found.request_id), found.outputs[0]
                        drawn = [of[token].logprob for of, token in zip(output.logprobs, output.token_ids, strict=True)]
                        responses[number], logprobs[number] = ends.cut(output.token_ids, drawn)
                        running.discard(found.request_id)
                        on_done(number, responses[number])
        finally:  # after a signal nothing is left for the next call
            engine.abort_request(list(running))
        return Drawn(responses, None, logprobs)

    def _asked(self, settings: dict[str, Any], seed: int) -> Any:
        """Make the settings of one request; CPU generators do not offer what vLLM needs for a seed of its own."""
        from vllm import SamplingParams

        seeded = {"seed": seed} if self._on_gpu and settings["temperature"] else {}
        return SamplingParams(**settings, **seeded, detokenize="stop" in settings)

    def check_room(self, longest: int) -> None:
        """Raise UserError if the keys and values have no room for so many tokens, a prompt with its answer."""
        if longest > self.longest:
            raise UserError(
                f"rollout.cache_gb: {self._cache_gb:g} GB hold the keys and values of {self.longest:,} tokens, and a "
                f"prompt with its answer may have {longest:,}; raise it"
            )

    def close(self) -> None:
        """Free what the engine holds."""
        self._llm.llm_engine.engine_core.shutdown()
        self._folder.cleanup()


def _module_of_model(worker: Any) -> str:
    return type(worker.get_model()).__module__


def _let_experts_pack_again(worker: Any, layers: set[str]) -> None:
    """Have experts that are given anew packed as at first, which vLLM's CPU build leaves out. layers: their numbers."""
    for name, module in worker.get_model().named_modules() if worker.device.type == "cpu" else ():
        method: Any = getattr(module, "quant_method", None)
        if weights.number_of_layer(name) in layers and getattr(method, "moe_kernel", None) is not None:
            method.moe_kernel = None


def _renew_tied_head(worker: Any) -> None:
    """Have a head that is the embeddings prepare them again: on a CPU it multiplies by a packed copy of its own."""
    model = worker.get_model()
    head: Any = getattr(model, "lm_head", None)
    if head is not None and hasattr(head, "cpu_linear") and hasattr(head, "quant_method"):
        head.quant_method.process_weights_after_loading(head)


def _make(folder: str, policy: CausalLM, config: RolloutConfig) -> Any:
    """Make vLLM of a folder with a configuration and a tokenizer. Raises UserError where it cannot."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine's loop here and not in a process of its own
    from vllm import LLM

    on_gpu = policy.device.type == "cuda"
    state, threads, set_threads = torch.get_rng_state(), torch.get_num_threads(), torch.set_num_threads
    try:
        return LLM(
            folder,
            load_format="dummy",
            dtype=str(policy.dtype).removeprefix("torch."),
            max_num_seqs=config.slots,
            max_model_len=AS_LONG_AS_FITS,
            kv_cache_memory_bytes=int(config.cache_gb * 1e9),
            enable_prefix_caching=True,
            generation_config="vllm",
            logprobs_mode="processed_logprobs",
            disable_log_stats=True,
            **(_of_gpu(policy.device) if on_gpu else {"enforce_eager": True}),
        )
    except Exception as error:  # whatever vLLM or the model's code there raises
        raise UserError(
            f"rollout.engine: vLLM cannot run this {policy.config.model_type} ({first_line(error)[:200]}); use slots"
        ) from error
    finally:
        torch.set_num_threads = set_threads  # vLLM replaces it
        torch.set_num_threads(threads)
        torch.set_rng_state(state)
        if on_gpu:
            torch.cuda.set_device(policy.device)


def _of_gpu(device: torch.device) -> dict[str, Any]:
    """Return what vLLM needs beside a run on the same GPU.

    It refuses to start where a share of the GPU is not free, though with a cache of a given size it does not use the
    share. With several processes it takes the device of its own rank in the launcher's words.
    """
    free, total = torch.cuda.mem_get_info(device)
    several = dist.is_initialized() and dist.get_world_size() > 1
    return {
        "enable_sleep_mode": True,
        "gpu_memory_utilization": SHARE_OF_FREE * free / total,
        **({"distributed_executor_backend": "external_launcher"} if several else {}),
    }
