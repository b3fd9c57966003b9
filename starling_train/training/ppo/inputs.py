"""What a PPO run reads before its first step, checked before anything expensive; and what it would do, in words."""

from dataclasses import dataclass
from pathlib import Path

from starling_train.config import guard
from starling_train.config.fields import UserError
from starling_train.config.ppo import PpoConfig
from starling_train.config.sections import ScorerConfig
from starling_train.data import nectar, prompts
from starling_train.data.chat import Chat
from starling_train.data.prompts import Prompt
from starling_train.models import written
from starling_train.models.actors import Actors
from starling_train.models.source import ModelSource
from starling_train.planning import planner
from starling_train.planning.memory import MemoryPlan, planned_device
from starling_train.planning.planner import Planner, judges_of, of_each
from starling_train.planning.shapes import Shape
from starling_train.planning.what_trains import rendered, selection, what_trains
from starling_train.rewards import kinds, terms
from starling_train.rollout.exclusions import exclusions
from starling_train.run.directory import RunDirectory
from starling_train.run.runtime import Runtime
from starling_train.selection.freeze import FreezeTable
from starling_train.training import policy, preflight
from starling_train.training.policy import SelectedPolicy, check_share

REFUSED = "refused by the reward side"


@dataclass
class PpoData:
    """Prompts to train on, prompts held out, and what was dropped, in a line or more."""

    training: list[Prompt]
    held_out: list[Prompt]
    report: str


@dataclass
class PpoInputs:
    """The policy on disk, and the prompts. baseline_gb: memory that was held before."""

    source: ModelSource
    chat: Chat
    data: PpoData
    baseline_gb: float

    @classmethod
    def find(cls, config: PpoConfig, run: RunDirectory, runtime: Runtime) -> "PpoInputs":
        """Read and check everything, the cheap things first. Nothing is written. Raises UserError."""
        baseline_gb = runtime.peak_memory_gb()  # on a CPU: interpreter and libraries
        source = ModelSource.open(config.model.path, "model.path", config.model.revision)
        chat = policy.load_chat(source, config.model)
        policy.check_lengths(config, source.policy_config, chat)
        written.check_writable(chat, f"model.path: {source.directory}")
        check_shares(config, runtime)
        check_run(config, source, run.path, runtime)
        return cls(source, chat, load_data(config, chat, kinds.everyone), baseline_gb)

    def actors(self, config: PpoConfig, policy: SelectedPolicy, runtime: Runtime) -> Actors:
        """Make policy, reference and critic, on the run's device, for training."""
        runtime.seed_all("value head")
        excluded = exclusions(policy.model.config, self.chat, config.rollout.min_new_tokens)
        lowest, temperature = policy.table.lowest_layer, config.rollout.temperature
        actors = Actors(policy.model, config.algorithm.critic, lowest, temperature, excluded=excluded)
        return actors.to(runtime.device).train()

    def planned_gb(self, config: PpoConfig, table: FreezeTable, runtime: Runtime) -> float | None:
        """Return the planned peak of each process, decimal GB; None for a reward model of any architecture."""
        return planner.of_run(config, self.source.policy_config, table, runtime.device.type, runtime.world)


def load_data(config: PpoConfig, chat: Chat, asks: kinds.Asks | None = None) -> PpoData:
    """Read, filter, tokenise and split the prompts. Raises UserError when none is left, naming the filter.

    asks: which of the reward side is shown the prompts, and those that it refuses are dropped; it must be there to be
        asked. None: nobody.
    """
    reward = kinds.of(config.reward)
    rows = nectar.load_section(config.data, answers=False, keep=reward.columns(config.reward), marks=chat.end_strings)
    accepted, refused, lines = chat.accepted(rows.rows, lambda row: [row.messages], lambda row: row.where)
    conversations, columns = [row.messages for row in accepted], [row.columns for row in accepted]
    fitting, _ = prompts.tokenise(conversations, chat, config.data.max_prompt_tokens, columns)
    dropped = rows.drops()
    dropped.add_all(next(iter(refused), ""), nectar.lost(rows.rows, accepted))
    dropped.add_all(f"longer than {config.data.max_prompt_tokens} tokens", nectar.lost(accepted, fitting))
    if asks:
        asked = [prompt.messages for prompt in fitting]
        admission = kinds.admit(config.reward, asked, [prompt.columns for prompt in fitting], asks)
        lines += [*admission.described(asked), *admission.lines]
        where = {id(row.messages): row.where for row in accepted}
        dropped.add_all(REFUSED, [where[id(asked[index])] for index in sorted(admission.refused)])
        fitting = [prompt for index, prompt in enumerate(fitting) if index not in admission.refused]
    training, held_out = prompts.hold_out(fitting, config.data.eval_prompts, config.seed)
    report = f"{rows.read()}: {len(training)} training prompts, {len(held_out)} held out; dropped: {dropped}"
    return PpoData(training, held_out, "\n".join([report, *lines, *chat.lines()]))


def check_run(config: PpoConfig, source: ModelSource, run: Path, runtime: Runtime) -> None:
    """Check everything that a run needs but its data. source: the policy. Raises UserError."""
    preflight.check_policy_run(config, source, run)
    kinds.of(config.reward).check(config.reward, True)
    preflight.check_gpu(lambda: planned(config, source)[1], runtime.device)


def check_shares(config: PpoConfig, runtime: Runtime) -> None:
    """Raise UserError if a process would have no prompt to handle, or a reward model on the GPUs of the others."""
    for scorer in config.reward.scorers.values() if runtime.world > 1 else ():
        if scorer.device_map:
            raise UserError(
                f"{scorer.section}.device_map: {scorer.device_map} spreads the reward model over GPUs that the other "
                f"processes use; serve it ({scorer.section}.kind=server), or leave {scorer.section}.device_map out"
            )
    for key, count in (
        ("algorithm.prompts_per_step", config.algorithm.prompts_per_step),
        ("data.eval_prompts", config.data.eval_prompts),
    ):
        check_share(key, count, runtime)


def describe(config: PpoConfig) -> str:
    """Describe what would be trained, on what, and the memory by part. Raises UserError as the run itself would."""
    source = ModelSource.open(config.model.path, "model.path", config.model.revision, weights=False)
    model_config = source.policy_config
    chat = policy.load_chat(source, config.model)
    policy.check_lengths(config, model_config, chat)
    table, memory = planned(config, source)
    return "\n".join(
        [
            f"run        {config.name}: {config.algorithm.name}, {config.algorithm.steps} steps of "
            f"{config.algorithm.prompts_per_step} prompts{of_each(config.algorithm)}, up to "
            f"{config.rollout.max_new_tokens} new tokens",
            f"policy     {config.model.path} ({model_config.model_type}, "
            f"{source.text_config.num_hidden_layers} layers, {len(chat.tokenizer)} tokens), {config.model.dtype}",
            f"prompts    {config.data.path}{_prompt_report(config, chat)}",
            f"reward     {kinds.described(config.reward)}",
            *terms.described_each(config.reward),
            f"trains     {selection(config.freeze)}",
            *guard.described(config),
            *rendered(table, memory),
        ]
    )


def _prompt_report(config: PpoConfig, chat: Chat) -> str:
    if not Path(config.data.path).expanduser().exists():
        return "  (not a local path: read when the run starts)"
    # a reward model that is not in a directory here is asked when the run starts
    return f": {load_data(config, chat, lambda one: not one.has_weights or _is_here(one)).report}"


def _is_here(scorer: ScorerConfig) -> bool:
    return Path(scorer.path).expanduser().is_dir()


def planned(config: PpoConfig, source: ModelSource) -> tuple[FreezeTable, MemoryPlan]:
    """Plan what would train and the memory by part, without weights and without a scan. Raises UserError."""
    table = what_trains(config.freeze, source, config.seed)
    device = planned_device(config.cluster.device)
    return table, Planner(config, Shape.of(source.policy_config), judges_of(config), table, device).memory()
