"""What training on preferences needs before its first step: pairs of answers, and a partly trainable policy."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starling_train.config import guard
from starling_train.config.dpo import DpoConfig
from starling_train.config.fields import UserError
from starling_train.data import nectar, pairs, prompts, ranked
from starling_train.data.chat import Chat
from starling_train.data.conversations import with_answer
from starling_train.data.pairs import PairedRow
from starling_train.data.prompts import Prompt
from starling_train.models import written
from starling_train.models.families.positions import positions_of
from starling_train.models.source import ModelSource
from starling_train.planning import supervised, what_trains
from starling_train.planning.memory import MemoryPlan, plan_supervised
from starling_train.planning.shapes import Shape
from starling_train.planning.supervised import dpo_job
from starling_train.run.checkpoints import identify_base
from starling_train.run.directory import RunDirectory
from starling_train.run.runtime import Runtime
from starling_train.selection.freeze import FreezeTable
from starling_train.training import policy, preflight
from starling_train.training.dpo import reference
from starling_train.training.dpo.reference import Reference

PROBED = 8  # rows whose token ids say which tokenizer this is


@dataclass
class DpoData:
    """Rows to train on, held-out rows (other prompts), held-out prompts to answer, and a line about all."""

    training: list[PairedRow]
    held_out: list[PairedRow]
    to_answer: list[Prompt]
    report: str


@dataclass
class DpoInputs:
    """The policy on disk, and the pairs. baseline_gb: memory that was held before."""

    source: ModelSource
    chat: Chat
    data: DpoData
    baseline_gb: float

    @classmethod
    def find(cls, config: DpoConfig, run: RunDirectory, runtime: Runtime) -> "DpoInputs":
        """Read and check everything, the cheap things first. Nothing is written. Raises UserError."""
        baseline_gb = runtime.peak_memory_gb()  # on a CPU: interpreter and libraries
        source = ModelSource.open(config.model.path, "model.path", config.model.revision)
        chat = policy.load_chat(source, config.model)
        check_lengths(config, source.policy_config, chat)
        written.check_writable(chat, f"model.path: {source.directory}")
        check_shares(config, runtime)
        preflight.check_policy_run(config, source, run.path)
        preflight.check_gpu(lambda: planned(config, source)[1], runtime.device)
        return cls(source, chat, load_data(config, chat), baseline_gb)

    def planned_gb(self, config: DpoConfig, table: FreezeTable, runtime: Runtime) -> float:
        """Return the planned peak of each process, decimal GB."""
        return supervised.of_run(config, self.source.policy_config, table, runtime.device.type, runtime.world)


def load_data(config: DpoConfig, chat: Chat) -> DpoData:
    """Read the ranked rows, drop what is unusable or too long, split by prompt. Raises UserError."""
    data = config.data
    rows = nectar.load_section(data, marks=chat.end_strings)
    usable, without = ranked.with_an_order(rows.rows, data.path)
    ordered = usable
    usable, refused, lines = chat.accepted(
        ordered,
        lambda row: [row.messages, with_answer(row.messages, row.answers[0].text)],
        lambda row: row.where,
    )
    fitting, _ = prompts.tokenise([row.messages for row in usable], chat, data.max_prompt_tokens)
    prompt_of = {id(prompt.messages): prompt for prompt in fitting}
    kept = [row for row in usable if id(row.messages) in prompt_of]
    paired, same = pairs.distinct(pairs.make(kept, config.dpo.pairs, config.seed), chat, config.dpo.max_length)
    if not paired:
        length = config.dpo.max_length
        if not chat.template.keeps_reasoning:
            raise UserError(
                f"model.template: both answers of every pair are the same {length} tokens without the reasoning, which "
                "it leaves out; give another model.template"
            )
        raise UserError(f"dpo.max_length: {length} cuts both answers of every pair to the same; raise it")
    training, held_out = prompts.hold_out(paired, data.eval_prompts, config.seed)
    to_answer = [prompt_of[id(row.messages)] for row in held_out[: config.evaluation.responses]]
    dropped = rows.drops()
    dropped.add_all(ranked.NO_ORDER, [row.where for row in without])
    dropped.add_all(next(iter(refused), ""), nectar.lost(ordered, usable))
    dropped.add_all(f"longer than {data.max_prompt_tokens} tokens", nectar.lost(usable, fitting))
    dropped.add_all(f"pairs of the same {config.dpo.max_length} tokens", [kept[index].where for index in same])
    report = (
        f"{rows.read()}: {len(training)} training prompts with {_pairs(training)} pairs ({config.dpo.pairs}), "
        f"{len(held_out)} held out with {_pairs(held_out)}; dropped: {dropped}; "
        f"answers: {prompts.counts(rows.answers_changed)}"
    )
    return DpoData(training, held_out, to_answer, "\n".join([report, *lines, *chat.lines()]))


def _pairs(rows: list[PairedRow]) -> int:
    return sum(len(row.pairs) for row in rows)


def check_lengths(config: DpoConfig, model_config: Any, chat: Chat) -> None:
    """Raise UserError if an answer can outgrow the model's positions, or ids its vocabulary."""
    policy.check_lengths(config, model_config, chat)
    positions = positions_of(model_config)
    if config.dpo.max_length > positions.most:
        raise UserError(f"dpo.max_length: {config.dpo.max_length} is more than the model's {positions.what}; lower it")


def check_shares(config: DpoConfig, runtime: Runtime) -> None:
    """Raise UserError if a process would have no prompt to handle."""
    policy.check_share("dpo.prompts_per_step", config.dpo.prompts_per_step, runtime)
    policy.check_share("data.eval_prompts", config.data.eval_prompts, runtime)
    if config.evaluation.responses:
        policy.check_share("evaluation.responses", config.evaluation.responses, runtime)


def steps(config: DpoConfig, rows: int) -> int:
    return prompts.steps(rows, config.dpo.prompts_per_step, config.dpo.epochs)


def find_reference(config: DpoConfig, run: RunDirectory, inputs: DpoInputs, runtime: Runtime) -> Reference:
    """Read the reference's log-probabilities, as far as an earlier start has computed them. Raises UserError.

    Only rows that some step trains on are computed, and the held-out ones.
    """
    data, chat = inputs.data, inputs.chat
    identity = runtime.on_first(lambda: identify_base(run.checkpoints, inputs.source.directory))
    inputs.source.known_identity = identity  # the checkpoints need it too, and a large model takes minutes to read
    base = identity.sha256
    count, per_step = len(data.training), config.dpo.prompts_per_step
    stream = prompts.Stream(range(count), per_step, config.seed)
    used = {index for step in range(1, steps(config, count) + 1) for index in stream.batch(step)}
    training = [row for index, row in enumerate(data.training) if index in used]
    needed = reference.chunks(training) + reference.chunks(data.held_out)
    probe = [chat.prompt(row.messages) for row in [*training, *data.held_out][:PROBED]]
    settings = {"dtype": config.model.dtype, "max_length": config.dpo.max_length}
    rows = [row for chunk in needed for row in chunk]
    who = reference.identity(base, settings, rows, probe)
    known = runtime.on_first(lambda: reference.read(run.path / reference.FILE, who, needed))
    return Reference(needed, who, known)


def usable(data: DpoData, known: Reference) -> DpoData:
    """Add the reference's log-probabilities to the data; pairs without a finite one are dropped and reported.

    Raises UserError if none is left. A training row without pairs keeps its position, or later steps would get other
    rows.
    """
    (training, lost), (held_out, held_out_lost) = map(known.usable, (data.training, data.held_out))
    if not any(row.pairs for row in training):
        raise UserError(
            "model.path: not one answer of a training pair has a finite log-probability under it; check its weights, "
            "or use model.dtype=float32"
        )
    report = (
        f"{lost} training pairs and {held_out_lost} held-out ones dropped: the reference's log-probability of an "
        "answer is not finite"
        if lost + held_out_lost
        else "the reference's log-probabilities are known"
    )
    return DpoData(training, [row for row in held_out if row.pairs], data.to_answer, report)


def describe(config: DpoConfig) -> str:
    """Describe what would be trained, and the memory by part, without weights. Raises UserError as the run would."""
    source = ModelSource.open(config.model.path, "model.path", config.model.revision, weights=False)
    model_config = source.policy_config
    chat = policy.load_chat(source, config.model)
    check_lengths(config, model_config, chat)
    table, memory = planned(config, source)
    pairs_report, count = "  (not a local path: read when the run starts)", ""
    if Path(config.data.path).expanduser().exists():
        data = load_data(config, chat)
        pairs_report, count = f": {data.report}", f", {steps(config, len(data.training))} steps"
    dpo = config.dpo
    return "\n".join(
        [
            f"run        {config.name}: DPO ({dpo.loss}, beta {dpo.beta:g}), {dpo.epochs:g} epochs of "
            f"{dpo.prompts_per_step} prompts a step{count}",
            f"policy     {config.model.path} ({model_config.model_type}, "
            f"{source.text_config.num_hidden_layers} layers, {len(chat.tokenizer)} tokens), {config.model.dtype}",
            f"pairs      {config.data.path}{pairs_report}",
            f"trains     {what_trains.selection(config.freeze)}",
            *guard.described(config),
            *what_trains.rendered(table, memory),
        ]
    )


def planned(config: DpoConfig, source: ModelSource) -> tuple[FreezeTable, MemoryPlan]:
    """Plan what would train and the memory by part, without weights and without a scan. Raises UserError."""
    table = what_trains.what_trains(config.freeze, source, config.seed)
    layers = source.text_config.num_hidden_layers
    return table, plan_supervised(Shape.of(source.policy_config), dpo_job(config, table, layers))
