"""What a run needs on N devices: memory by part, tokens and time of a step, and the fewest devices that hold it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starling_train.config import guard
from starling_train.config.fields import UserError, no_path
from starling_train.config.ppo import PpoConfig
from starling_train.config.sections import AlgorithmConfig, ScorerConfig, in_term
from starling_train.files import adapter_files
from starling_train.planning import shapes
from starling_train.planning.memory import Judge, MemoryPlan, Share, TrainingJob, plan, planned_device
from starling_train.planning.schedule import Schedule, lengths, schedule
from starling_train.planning.shapes import Shape
from starling_train.planning.step_time import DEVICES, Work, dtype_lines, nearest, scan_lines, seconds
from starling_train.planning.what_trains import what_trains_of

COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


@dataclass
class Planner:
    """The arithmetic for one configuration. table: what trains (`FreezeTable`). device: cpu or cuda."""

    config: PpoConfig
    policy: Shape
    judges: Sequence[Judge]
    table: Any
    device: str

    @classmethod
    def find(cls, config: PpoConfig) -> "Planner":
        """Plan from config.json, or from what is known of published models. Raises UserError."""
        policy = shapes.find(config.model.path, "model.path", shapes.KNOWN_POLICIES, config.model.path)
        table = what_trains_of(config.freeze, policy.config(), config.seed, config.model.path)
        return cls(config, policy, judges_of(config), table, planned_device(config.cluster.device))

    def job(self, processes: int = 1) -> TrainingJob:
        """Describe the work of one of the processes, at the longest prompts and responses."""
        config, policy = self.config, self.policy
        algorithm, longest = config.algorithm, config.data.max_prompt_tokens + config.rollout.max_new_tokens
        responses = -(-algorithm.prompts_per_step // processes) * algorithm.responses_per_prompt
        above = policy.layers - min(self.table.lowest_layer, policy.layers)
        return TrainingJob(
            parameters=self.table.parameters_of,
            trainable=self.table.parameters_trained,
            dtype=config.model.dtype,
            critic=algorithm.critic,
            slots=min(config.rollout.slots, responses),
            sequence_tokens=longest,
            prompt_tokens=config.data.max_prompt_tokens,
            step_tokens=responses * longest,
            minibatch_tokens=-(-responses // algorithm.minibatches) * longest,
            tokens_per_microbatch=algorithm.tokens_per_microbatch,
            layers_above_lowest=above,
            layers_trained=above,  # which ones a scan will pick is unknown, and it spreads them
            gradient_checkpointing=config.model.gradient_checkpointing,
            eight_bit=config.optim.eight_bit,
            kept_limit=algorithm.prefix_device_gb * 1e9,
            device=self.device,
            adapter=bool(config.freeze.adapter),
            load_in=config.model.load_in,
            optimizer_offloaded=config.cluster.offload == "optimizer",
            engine=config.rollout.engine,
            cache=config.rollout.cache_gb * 1e9,
        )

    def memory(self, processes: int = 1, stage: int | None = None) -> MemoryPlan:
        """Plan the bytes on each device. stage: the configuration's if None."""
        share = Share(processes, self.config.cluster.zero_stage if stage is None else stage)
        return plan(self.policy, self.judges, self.job(processes), share)

    def fewest(self, gb: float) -> tuple[int, int] | None:
        """Find the fewest devices of `gb` decimal GB: (devices, ZeRO stage), None beyond the largest count.

        The configured stage if it is enough; else the lowest that is.
        """
        config = self.config
        prompts, stage = config.algorithm.prompts_per_step, config.cluster.zero_stage
        return fewest(self.memory, gb, prompts, stage, config.optim.eight_bit)


def fewest(
    memory: Callable[[int, int], MemoryPlan], gb: float, prompts: int, stage: int, eight_bit: bool
) -> tuple[int, int] | None:
    """Find the fewest devices and their ZeRO stage, None beyond the largest count.

    memory: of so many processes at a stage.
    gb: of each device, decimal.
    prompts: of a step, as many processes at most.
    stage: the configured one, which is used if it is enough; else the lowest that is.
    eight_bit: moments that cannot be sharded.
    """
    stages = [0] if eight_bit else list(range(stage, 4))
    for count in COUNTS:
        if count > prompts:
            return None
        for one in stages if count > 1 else stages[:1]:
            if memory(count, one).total <= gb * 1e9:
                return count, one
    return None


def judges_of(config: PpoConfig) -> list[Judge]:
    """Describe the reward models that have weights here: none where the reward is served. Raises UserError."""
    judges = []
    for name, one in config.reward.scorers.items():
        if one.has_weights:
            with in_term(one):
                shape = _shape_of(one)
            judges.append(Judge(shape, name, one.dtype, one.load_in, one.tokens_per_batch, one.offload))
    return judges


def _shape_of(reward: ScorerConfig) -> Shape:
    path = Path(reward.path).expanduser()
    if reward.path in shapes.MADE and not path.exists():
        return shapes.MADE[reward.path]
    lacks_config = no_path(path) is None and path.is_dir() and not (path / "config.json").is_file()
    if lacks_config:
        adapter_files.check(path, "reward.path")
    where = reward.tokenizer if reward.tokenizer and lacks_config else reward.path
    return shapes.find(where, "reward.path", shapes.KNOWN_REWARD_MODELS, reward.kind)


def describe(config: Any) -> str:
    """Render the text of the command `plan`. config: a run's with the section `plan`. Raises UserError."""
    planner, settings = Planner.find(config), config.plan
    count, prompts = settings.processes, config.algorithm.prompts_per_step
    stage = config.cluster.zero_stage
    if config.optim.eight_bit and stage and count > 1:
        raise UserError("optim.eight_bit: 8-bit moments cannot be sharded; use cluster.zero_stage=0, or leave it out")
    memory, device = planner.memory(count), nearest(settings.gpu_gb)
    prompt_tokens = min(settings.prompt_tokens, config.data.max_prompt_tokens)
    response_tokens = min(settings.response_tokens, config.rollout.max_new_tokens)
    rollouts = rollouts_of(config, prompt_tokens, response_tokens, count)
    algorithm = config.algorithm
    work = Work(
        algorithm.responses_per_step / count,
        prompt_tokens,
        response_tokens,
        algorithm.epochs,
        rollouts,
        algorithm.epochs * algorithm.minibatches,
        algorithm.responses_per_prompt,
    )
    job, shares = planner.job(count), (settings.matrix_share, settings.bandwidth_share)
    times = seconds(planner.policy, planner.judges, job, work, device, *shares)
    longest = algorithm.responses_per_step * (config.data.max_prompt_tokens + config.rollout.max_new_tokens)
    total, fits = sum(times.values()), memory.total <= settings.gpu_gb * 1e9
    guessed = config.freeze.method in ("snr", "lowest") and not config.freeze.scan
    lines = [
        f"plan       {config.name}: {count} process{'es' if count > 1 else ''} of one device each, "
        f"{'ZeRO stage ' + str(stage) if count > 1 and stage else 'nothing sharded'}",
        "trains     as many matrices as the SNR scan will select; which ones, the scan decides when the run starts"
        if guessed
        else f"trains     by freeze.method={config.freeze.method}",
        *guard.described(config),
        "",
        planner.table.render(),
        "",
        "memory of each device, at the longest prompts and responses",
        memory.render(),
        f"{'fits' if fits else 'does not fit'} on a device of {settings.gpu_gb:g} GB; not counted: the CUDA context "
        "and what allocators lose; a device has some 5 % more bytes than its nominal GB, which is left for them",
        "",
        f"step       {prompts} prompts{of_each(algorithm)}, {round(work.tokens * count):,} tokens at {prompt_tokens} "
        f"of a prompt and {response_tokens} of a response in the mean, {longest:,} at most",
        f"time       about {total:.0f} s a step, {total * config.algorithm.steps / 3600:.1f} h for "
        f"{config.algorithm.steps} steps ({', '.join(f'{name} {value:.0f}' for name, value in times.items())}): "
        "an estimate, not a measurement,",
        f"           for the {device.name}, {settings.matrix_share:.0%} of {device.tflops:g} TFLOP/s and "
        f"{settings.bandwidth_share:.0%} of {device.bandwidth_gb_s:g} GB/s",
        *scan_lines(config.freeze, settings.gpu_gb, planner.device),
        *dtype_lines(job),
        "",
        "fewest devices that hold it",
        *(f"  {kind.gb:>3} GB  {in_words(planner.fewest(kind.gb), stage)}" for kind in DEVICES),
    ]
    return "\n".join(lines)


def rollouts_of(config: PpoConfig, prompt_tokens: int, response_tokens: int, processes: int) -> tuple[Schedule, ...]:
    """Count the rollout of each process, with lengths of these means; a process has every `processes`-th prompt."""
    count, group = config.algorithm.prompts_per_step, config.algorithm.responses_per_prompt
    limit = config.rollout.max_new_tokens
    prompts = lengths(count, prompt_tokens, config.data.max_prompt_tokens, seed=0)
    responses = lengths(count * group, response_tokens, limit, seed=1)
    capacity = max(prompts) + limit
    by_length = config.model.dtype != "float32"  # of rollout.attention: the kernel takes 16 bits
    rollouts = []
    for rank in range(processes):
        own = [(index, index * group + place) for index in range(rank, count, processes) for place in range(group)]
        of_prompts, of_responses = [prompts[i] for i, _ in own], [responses[j] for _, j in own]
        rollouts.append(schedule(of_prompts, of_responses, config.rollout.slots, capacity, by_length))
    return tuple(rollouts)


def of_each(algorithm: AlgorithmConfig) -> str:
    """Say how many responses a prompt has, where it has several."""
    group = algorithm.responses_per_prompt
    return f" of {group} responses each" if group > 1 else ""


def in_words(counted: tuple[int, int] | None, stage: int) -> str:
    """Return what `fewest` found as text. stage: the configured one."""
    if counted is None:
        return "no number that was tried"
    count, needed = counted
    return f"{count}" + (f" with cluster.zero_stage={needed}" if count > 1 and needed != stage else "")


def of_run(config: PpoConfig, policy: Any, table: Any, device: str, processes: int) -> float | None:
    """Return the planned peak of each process, decimal GB; None for a reward model of any architecture.

    policy: its transformers configuration. table: what trains.
    """
    if any(one.kind == "sequence_classification" for one in config.reward.scorers.values()):
        return None
    return Planner(config, Shape.of(policy), judges_of(config), table, device).memory(processes).total / 1e9
