"""Memory of a run by part, by arithmetic: no weights are loaded, and torch is not needed.

All sizes are bytes on one device, or for it in the memory of its host. Counted are tensors that live as long as a phase
does; not the CUDA context, what an allocator loses in fragments, and what libraries keep for themselves.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from starling_train.planning.shapes import Shape

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
LOADED = {"8bit": 1.0, "4bit": 0.55}  # bytes of a quantised weight, scales included
LOGITS = {"cpu": 2**21, "cuda": 2**25}  # elements of a chunk (core.logprobs)
CAPACITY = 512  # positions of a slot on a GPU are a multiple of this (rollout.slots)
LEAN_FROM = 5_000_000  # parameters of the smallest model whose weights are packed for a rollout (rollout.lean_decoder)
PREFILL_TOKENS = 8192  # of prompts in one forward pass (rollout.slots)
BUCKET = 5 * 10**8  # elements of gradients that DeepSpeed exchanges at a time, at most
STEP_ELEMENTS = 2**27  # of gradients that exist in float32 at a time while one process updates (training.local)
LIVE = 10**9  # parameters that stage 3 holds gathered at a time, its default


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by part: `held` for the whole run, and what each phase of a step needs on top, one after the other.

    host: what a process keeps in host memory instead, all of it at once.
    """

    held: dict[str, float]
    rollout: dict[str, float]
    update: dict[str, float]
    scoring: dict[str, float] = field(default_factory=dict)
    step: dict[str, float] = field(default_factory=dict)  # the optimizer's, when activations are gone
    host: dict[str, float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        """The peak: what is held and the largest of the phases."""
        phases = (self.rollout, self.scoring, self.update, self.step)
        return sum(self.held.values()) + max(sum(phase.values()) for phase in phases)

    def render(self) -> str:
        """Render a line per part, decimal GB."""
        rows = list(self.held.items())
        for name in ("rollout", "scoring", "update", "step"):
            rows += [(f"during {name}: {part}", size) for part, size in getattr(self, name).items()]
        rows.append(("peak", self.total))
        rows += [(f"in host memory: {part}", size) for part, size in self.host.items()]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {size / 1e9:8.2f} GB" for name, size in rows)


@dataclass(frozen=True)
class Share:
    """Which share each of the processes holds at a ZeRO stage (0 to 3)."""

    processes: int = 1
    stage: int = 0

    def of(self, size: float, stage: int) -> float:
        """Return the bytes here of something that is sharded from that stage on."""
        return size / self.processes if self.is_zero and self.stage >= stage else size

    @property
    def is_zero(self) -> bool:
        return self.stage > 0 and self.processes > 1


@dataclass(frozen=True)
class TrainingJob:
    """What the arithmetic needs besides the shapes. Counts are those of one process.

    parameters, trainable: of the policy.
    sequence_tokens, prompt_tokens: of the longest prompt and response together, and of that prompt alone.
    step_tokens, minibatch_tokens: of all sequences of a step and of a mini-batch.
    layers_above_lowest: decoder layers from the lowest that trains on.
    layers_trained: how many of them have something that trains.
    kept_limit: bytes of hidden states that stay on the device.
    adapter: what trains lies beside the policy's parameters.
    load_in: 8bit or 4bit, of the policy's layers.
    optimizer_offloaded: kept in host memory; on a CPU that is the device's, and copies come on top.
    engine: what draws the responses (`rollout.engine`).
    cache: bytes of the keys and values of engine vllm.
    """

    parameters: int
    trainable: int
    dtype: str
    minibatch_tokens: int
    tokens_per_microbatch: int
    layers_above_lowest: int
    layers_trained: int = 0
    critic: str = "head"
    slots: int = 0
    sequence_tokens: int = 0
    prompt_tokens: int = 0
    step_tokens: int = 0
    gradient_checkpointing: bool = False
    eight_bit: bool = False
    kept_limit: float = float("inf")
    device: str = "cuda"
    adapter: bool = False
    load_in: str | None = None
    optimizer_offloaded: bool = False
    engine: str = "slots"
    cache: float = 0.0

    def critics_trunk(self, policy: Shape) -> int:
        """Count the parameters of the critic's own layers, all of which train."""
        return {"none": 0, "head": 0, "twin": self.trainable, "separate": policy.decoder_parameters()}[self.critic]


@dataclass(frozen=True)
class Judge:
    """A reward model with weights here.

    name: of the term that it is of a sum; "": it is the reward.
    tokens: of a forward pass.
    offloaded: kept in host memory while it does not score.
    """

    shape: Shape
    name: str = ""
    dtype: str = "bfloat16"
    load_in: str | None = None
    tokens: int = 0
    offloaded: bool = False

    @property
    def part(self) -> str:
        """What it is called in a plan."""
        return f"reward model {self.name}".rstrip()

    def weights(self) -> float:
        """Return the bytes of its weights."""
        return self.shape.decoder_parameters() * (LOADED[self.load_in] if self.load_in else BYTES[self.dtype])

    def scoring(self, job: "TrainingJob") -> dict[str, float]:
        """Return the bytes by part that it needs while it scores."""
        tokens = _microbatch(job.step_tokens, self.tokens, job.sequence_tokens)
        activations = {"activations": tokens * self.shape.forward() * BYTES[self.dtype]}
        return activations | ({f"{self.part}, while it scores": self.weights()} if self.offloaded else {})


def planned_device(device: str) -> str:
    """Return the kind of device to plan for: cpu if `cluster.device` says so, else cuda, for `auto` too."""
    return "cpu" if device == "cpu" else "cuda"


def plan(policy: Shape, judges: Sequence[Judge], job: TrainingJob, share: Share | None = None) -> MemoryPlan:
    """Plan the memory of PPO in one process. judges: none where the reward model is served elsewhere."""
    share, size, d = share or Share(), BYTES[job.dtype], policy.hidden
    head = 0 if job.critic == "none" else 2 * d * d + 4 * d + 1  # the value head, float32
    trunk = job.critics_trunk(policy)
    learning = job.trainable + trunk
    of_critic = share.of(trunk * size + head * (size if share.is_zero else 4), 3)
    critic = {f"critic ({job.critic})": of_critic} if head else {}
    shares = job.layers_above_lowest < policy.layers
    kept = {"prefix cache": shares * min(job.step_tokens * d * size, job.kept_limit)}
    gathered = _gathered(job.parameters + learning, size, share)
    logits = _logits(policy, job)
    batch = _microbatch(job.step_tokens, job.tokens_per_microbatch, job.sequence_tokens)
    scoring = kept | gathered | {"activations": batch * (policy.forward() + d) * size, "logits, one chunk": logits}
    judging = [kept | gathered | judge.scoring(job) for judge in judges]  # one after the other
    optimizer, host = _state(job, learning, head, size, share)
    away = [judge for judge in judges if judge.offloaded and job.device != "cpu"]
    copied = _copy_of_vllm(job, size)
    weights = {judge.part: 0.0 if judge in away else judge.weights() for judge in judges} or {"reward model": 0.0}
    return MemoryPlan(
        held={
            "policy weights": share.of(_policy_bytes(policy, job, size), 3),
            # adapters are simply taken off for it
            "reference: own copies of what trains": 0.0 if job.adapter else share.of(job.trainable * size, 3),
            **critic,
            "optimizer: moments, master copies": optimizer,
            **weights,
            **(copied if job.device == "cpu" else {}),  # a GPU's sleeps outside of rollouts
        },
        rollout=_drawing(policy, job, size, kept["prefix cache"]) | gathered,
        scoring=max(*judging, scoring, key=lambda parts: sum(parts.values())) if judging else scoring,
        update=kept | _update(policy, job, (job.trainable, trunk, head), size, logits, share),
        step=kept | _step(policy, learning, head, size, share, job.optimizer_offloaded),
        host=host | {judge.part: judge.weights() for judge in away} | _asleep(job, size),
    )


def plan_supervised(model: Shape, job: TrainingJob, *, scores: bool = False, share: Share | None = None) -> MemoryPlan:
    """Plan the memory of DPO in a process, whose reference is numbers in a file.

    job: its mini-batch is the longest row or pair, which is never cut; its slots are the sequences that an evaluation
        draws at a time, 0 for none.
    scores: plan the training of a reward model instead.
    share: of each process; None = all.
    """
    share = share or Share()
    size, layers = BYTES[job.dtype], job.layers_above_lowest
    activations = activation_bytes(model, size, layers, layers, job.gradient_checkpointing)
    tokens = max(job.minibatch_tokens, job.tokens_per_microbatch)
    update = {"gradients": share.of(job.trainable * size, 2), "activations": tokens * activations}
    update |= _gathered(job.parameters, size, share)
    if share.is_zero:
        update["exchange with other processes"] = _exchange(job, job.trainable, size, share)
    step = _step(model, job.trainable, 0, size, share, job.optimizer_offloaded)
    optimizer, host = _state(job, job.trainable, 0, size, share)
    if scores:
        step = {part: amount for part, amount in step.items() if part != "one in its own type"}
    else:
        update["logits, one chunk"] = _logits(model, job)
    rollout = _drawing(model, job, size, 0.0) if job.slots else {}
    return MemoryPlan(
        held={
            "weights" if scores else "policy weights": share.of(_policy_bytes(model, job, size), 3),
            "optimizer: moments, master copies": optimizer,
            **(_copy_of_vllm(job, size) if job.slots and job.device == "cpu" else {}),
        },
        rollout={part: amount for part, amount in rollout.items() if amount},
        update=update,
        step=step,
        host=host | (_asleep(job, size) if job.slots else {}),
    )


def _logits(model: Shape, job: TrainingJob) -> float:
    return 3 * min(LOGITS[job.device], job.minibatch_tokens * model.vocabulary) * 4


def _microbatch(tokens: int, budget: int, longest: int) -> float:
    """Return the tokens of the largest group of `core.micro_batches.cut_packed`: the fewest groups, of like size."""
    groups = max(1, -(-tokens // budget))
    return min(tokens, max(longest, tokens / groups))


def _policy_bytes(policy: Shape, job: TrainingJob, size: int) -> float:
    """Count adapters beside the weights that they are for; embeddings, head and norms are not quantised."""
    beside = job.trainable * (size if job.load_in is None else 4) if job.adapter else 0  # PEFT's choice
    if job.load_in is None:
        return job.parameters * size + beside
    layers = policy.layers * policy.layer_parameters()
    return layers * LOADED[job.load_in] + (job.parameters - layers) * size + beside


def _gathered(parameters: int, size: int, share: Share) -> dict[str, float]:
    """Return what stage 3 adds: it gathers all weights for a rollout and its scoring."""
    whole = parameters * size
    return {"weights of the other processes": whole - share.of(whole, 3)} if share.stage == 3 and share.is_zero else {}


def _optimizer(learning: int, head: int, size: int, eight_bit: bool, share: Share) -> float:
    """Count Adam's two moments and float32 copies; DeepSpeed also copies what is float32 already."""
    if share.is_zero:
        return share.of((learning + head) * 12, 1)
    moments = 2 if eight_bit else 8
    return learning * (moments + (0 if size == 4 else 4)) + head * moments


def _state(job: TrainingJob, learning: int, head: int, size: int, share: Share) -> tuple[float, dict[str, float]]:
    """Return the optimizer's bytes on the device, and what is in host memory, by part."""
    if not job.optimizer_offloaded:
        return _optimizer(learning, head, size, job.eight_bit, share), {}
    state = share.of((learning + head) * 12, 1)  # float32 copies of what is float32, too
    through = share.of((learning + head) * (4 + size), 1)  # DeepSpeed's, of a whole shard
    if not share.is_zero:
        through = min(learning + head, STEP_ELEMENTS) * (size + (0 if size == 4 else 4))
    if job.device == "cpu":
        return state + through, {}
    return 0.0, {"optimizer: moments, master copies": state, "gradients and weights on their way": through}


def _drawing(policy: Shape, job: TrainingJob, size: int, kept: float) -> dict[str, float]:
    """Count what drawing responses needs here, by engine; states are kept by those that draw from the live weights."""
    if job.engine == "vllm_server":
        return {}
    if job.engine == "vllm":
        return {} if job.device == "cpu" else _copy_of_vllm(job, size)
    return _rollout(policy, job, size, kept)


def _copy_of_vllm(job: TrainingJob, size: int) -> dict[str, float]:
    """Count the weights and the cache of an engine in the process; nothing for the others."""
    if job.engine != "vllm":
        return {}
    return {"vLLM's copy of the weights": job.parameters * size, "vLLM's keys and values": job.cache}


def _asleep(job: TrainingJob, size: int) -> dict[str, float]:
    """Count what a GPU's engine keeps in host memory during an update."""
    if job.engine != "vllm" or job.device == "cpu":
        return {}
    return {"vLLM's copy of the weights, asleep": job.parameters * size}


def _rollout(policy: Shape, job: TrainingJob, size: int, kept: float) -> dict[str, float]:
    """Count keys and values of all slots, and a prefill or the logits of a step.

    The kept states are put together after that.
    """
    prefill = min(PREFILL_TOKENS, job.slots * job.prompt_tokens)
    unit = CAPACITY if job.device == "cuda" else 1
    cache = job.slots * -(-job.sequence_tokens // unit) * unit * policy.kv_values() * size
    passing = max(
        prefill * (policy.forward() + policy.kv_values()) * size,
        job.slots * policy.vocabulary * (size + 3 * 4),
    )
    parts = {"prefix cache": kept + max(0.0, kept - cache - passing), "KV cache": cache, "activations": passing}
    if job.device == "cpu" and job.dtype == "bfloat16" and job.load_in is None and job.parameters >= LEAN_FROM:
        packed = policy.layers * policy.layer_parameters() + policy.vocabulary * policy.hidden
        parts["weights packed for products, at most"] = packed * size  # rollout.products
    return parts


def _update(
    policy: Shape, job: TrainingJob, sizes: tuple[int, int, int], size: int, logits: float, share: Share
) -> dict[str, float]:
    """Count the backward pass of the largest micro-batch.

    sizes: parameters that train of policy, critic's trunk, value head. The first micro-batch of a mini-batch has its
    activations before its gradients; a later one has both.
    """
    trainable, trunk, head = sizes
    batch = _microbatch(job.minibatch_tokens, job.tokens_per_microbatch, job.sequence_tokens)
    responses = 1 - job.prompt_tokens / job.sequence_tokens
    layers, trained = job.layers_above_lowest, job.layers_trained
    largest = policy.hidden * policy.intermediate * size
    if job.critic == "separate":  # all of it trains, embeddings included
        layers = trained = policy.layers
        largest = policy.hidden * max(policy.intermediate, policy.vocabulary) * size
    activations = batch * activation_bytes(policy, size, layers, trained, job.gradient_checkpointing, responses)
    parts = {"logits, one chunk": logits}
    if share.is_zero:
        gradients = share.of((trainable + trunk + head) * size, 2)
        parts["exchange with other processes"] = _exchange(job, trainable + trunk + head, size, share)
        if share.stage == 3:
            parts["weights gathered"] = min(LIVE, job.parameters) * size
    else:
        gradients = (trainable + trunk) * size + head * 4
    if batch >= job.minibatch_tokens:  # one micro-batch
        before = gradients if trunk == 0 else share.of(trunk * size + head * 4, 2)
        gradients = gradients - min(before, activations)
        return {"gradients": gradients, "activations": max(activations, min(before, activations))} | parts
    return {"gradients": gradients, "activations": activations, "a gradient to be added": largest} | parts


def _exchange(job: TrainingJob, learning: int, size: int, share: Share) -> float:
    """Count DeepSpeed's buffers of gradients: on a GPU one is filled while the other travels (stages 1 and 2)."""
    buffers = 2 if job.device == "cuda" and share.stage < 3 else 1
    return buffers * min(BUCKET, learning) * size


def _step(policy: Shape, learning: int, head: int, size: int, share: Share, offloaded: bool) -> dict[str, float]:
    """Count the gradients, and what of them is in float32: all where they are summed over processes, else some.

    offloaded: those of one process become float32 in host memory.
    """
    if share.is_zero and offloaded:
        return {"gradients": share.of((learning + head) * size, 2)}
    if share.is_zero:
        return {
            "gradients": share.of((learning + head) * size, 2),
            "gradients, float32": share.of((learning + head) * 4, 1),
        }
    whole = {"gradients, float32": (learning + head) * 4.0}
    largest = policy.hidden * policy.intermediate
    if share.processes > 1:
        one: dict[str, float] = {"one in its own type": 0 if size == 4 else largest * size}
        return whole | one | {"sum over processes": max(2**25, largest) * 4}
    if size == 4:
        return whole
    if offloaded:
        return {"gradients": learning * size + head * 4.0}
    in_float32 = min(learning + head, max(STEP_ELEMENTS, largest)) * 4
    return {"gradients": learning * size + head * 4, "some of them in float32": in_float32}


def activation_bytes(
    shape: Shape, size: int, layers: int, trained: int, checkpointing: bool, responses: float = 1.0
) -> float:
    """Return the bytes per token that the backward pass needs, and what it makes of them.

    layers: from the lowest that trains on.
    trained: how many of them have matrices that train.
    responses: the share of tokens that predict one of a response: only they go through the last MLP, the final norm and
        the heads.
    """
    d, i, kv = shape.hidden, shape.intermediate, shape.kv_heads * shape.head
    norms = 2 * d * 4  # their inputs, in float32
    attention = (2 * d + 2 * kv) * size  # queries, keys, values, output
    frozen, inputs = 3 * i * size, (3 * d + i) * size  # gate, its activation, up; inputs of matrices that train
    after = responses * (4 * d + 2 * d * size + 5 * d * 4)  # final norm, its output and gradient, value head
    passing = (2 * d + 3 * i) * size
    whole = norms + attention + frozen + inputs
    if checkpointing:
        return layers * d * size + whole + passing + after
    skipped = (1 - responses) * (frozen + (d + i) * size) if layers else 0.0
    return layers * (norms + attention + frozen) + trained * inputs - skipped + passing + after
