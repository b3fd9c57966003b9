"""What the training of a reward model needs before its first step: ranked rows, and a network to train."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from starling_train.config.fields import UserError
from starling_train.config.rm import RankingConfig, RmConfig
from starling_train.data import nectar, prompts, ranked
from starling_train.data.nectar import RankedRow
from starling_train.data.reward_templates import encode_conversation
from starling_train.files import whole
from starling_train.files.disk import check_directory
from starling_train.models import quantisation
from starling_train.models.actors import Groups
from starling_train.models.causal_lm import recompute_backwards
from starling_train.models.reward.model import RewardModel
from starling_train.models.reward.net import RewardNet
from starling_train.models.reward.start import Start, check_start, empty_net, find_start, make_net, net_writer
from starling_train.models.source import ModelSource
from starling_train.planning import supervised
from starling_train.planning.memory import MemoryPlan, plan_supervised
from starling_train.planning.shapes import Shape
from starling_train.planning.supervised import rm_job
from starling_train.planning.what_trains import rendered, select_as_many
from starling_train.run.directory import RunDirectory
from starling_train.run.runtime import Runtime
from starling_train.selection import freeze
from starling_train.selection.module_types import LAYER
from starling_train.selection.records import Record
from starling_train.selection.scans import scan_or_list
from starling_train.selection.select import needs_scan, select
from starling_train.training import policy, preflight


@dataclass
class RewardTrainee:
    """The network with its trainable parameters marked, the names selected, the table, and the scan.

    base: the directory of the model it started as.
    """

    model: RewardNet
    selected: list[str]
    table: freeze.FreezeTable
    records: dict[str, Record]
    base: Path
    extra_files: None = None

    def groups(self) -> Groups:
        """Return the trainable parameters of the network and of its head, each with a learning rate of its own."""
        trainable = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        head = {name: p for name, p in trainable.items() if name.startswith("v_head.")}
        return {name: p for name, p in trainable.items() if name not in head}, head


@dataclass
class RmData:
    """Rows to train on, rows held out (other prompts), and one line on what was dropped."""

    training: list[RankedRow]
    held_out: list[RankedRow]
    report: str


@dataclass
class RmInputs:
    """What the reward model starts from, and the ranked rows. baseline_gb: memory that was held before."""

    start: Start
    data: RmData
    baseline_gb: float

    @classmethod
    def find(cls, config: RmConfig, run: RunDirectory, runtime: Runtime) -> "RmInputs":
        """Read and check everything, the cheap things first. Nothing is written. Raises UserError."""
        baseline_gb = runtime.peak_memory_gb()  # on a CPU: interpreter and libraries
        start = find_start(config)
        source = start.source.model
        preflight.check_trackers(config.logging)
        check_directory(run.path, "run_dir")
        quantisation.check_acceleration(attention=config.model.attention, eight_bit=config.optim.eight_bit)
        check_start(start, fresh=config.rm.fresh)
        preflight.check_selection(config.freeze, source, listing(config, source), config.seed)
        preflight.check_gpu(lambda: planned(config, start)[1], runtime.device)
        return cls(start, load_data(config, start), baseline_gb)

    def planned_gb(self, config: RmConfig, table: freeze.FreezeTable, runtime: Runtime) -> float:
        """Return the planned peak of each process, decimal GB."""
        return supervised.of_run(config, self.start.config, table, runtime.device.type, runtime.world)


def load_data(config: RmConfig, start: Start) -> RmData:
    """Read the ranked rows, drop what is unusable, split by prompt. Raises UserError when none is left.

    config: names the data.
    start: its template must take the rows.
    """
    data = config.data
    ends = [start.tokenizer.eos_token] if start.tokenizer.eos_token else []
    rows = nectar.load_section(data, marks=ends)
    ordered, without = ranked.with_an_order(rows.rows, data.path)
    accepted, refused = ranked.taken(ordered, partial(_encode, config.rm, start))
    if not accepted:
        where, reason = next(iter(refused.items()))
        raise UserError(
            f"data.path: the template of rm.kind={config.rm.kind} refuses all rows, {where} first: {reason}; give "
            "other rows, or another model"
        )
    shorter, repeated = ranked.distinct(accepted, partial(_encode, config.rm, start), config.rm.max_length)
    usable, equal = ranked.split_by_order(shorter)
    if not usable:
        raise UserError(f"rm.max_length: the last {config.rm.max_length} tokens of all answers are the same; raise it")
    training, held_out = prompts.hold_out(usable, data.eval_prompts, config.seed)
    dropped = rows.drops()
    dropped.add_all(ranked.NO_ORDER, [row.where for row in [*without, *equal]])
    for where, reason in refused.items():
        dropped.add(f"refused by the template ({reason})", where)
    answers = rows.answers_changed | {f"left out: the same last {config.rm.max_length} tokens": repeated}
    report = (
        f"{rows.read()}: {len(training)} training rows, {len(held_out)} held out; dropped: {dropped}; "
        f"answers: {prompts.counts(answers)}"
    )
    return RmData(training, held_out, report)


def _encode(ranking: RankingConfig, start: Start, conversation: list[dict]) -> list[int]:
    """Encode a conversation in the template of the reward model that is trained, whole. Raises UserError."""
    return encode_conversation(ranking.kind, conversation, start.tokenizer, trailing_newline=ranking.trailing_newline)


def load_trainee(config: RmConfig, start: Start, run: Path, runtime: Runtime) -> RewardTrainee:
    """Scan, select, load the weights, freeze the rest. The reward head always trains.

    run: directory of the run, whose own scan of the same weights is used.
    """
    policy.announce(config.name, start.directory, run, runtime)
    records = runtime.on_first(lambda: scan(config, start.source.model, str(runtime.device), run))
    selected = select(config.freeze, records, config.seed)
    runtime.seed_all("fresh weights")
    net = make_net(
        start,
        fresh=config.rm.fresh,
        dtype=config.model.dtype,
        attention=config.model.attention,
        device=str(runtime.device),
    )
    if config.model.gradient_checkpointing:
        recompute_backwards(net.transformer)
    table = _apply(config, empty_net(start) if config.freeze.adapter else net, selected)
    if config.freeze.adapter:
        policy.add_adapters(config.freeze, net, table, runtime)
        net.v_head.requires_grad_(True)
    return RewardTrainee(net, selected, table, records, start.directory)


def scan(config: RmConfig, source: ModelSource, device: str, run: Path | None = None) -> dict[str, Record]:
    """Scan the model's matrices, under the names that they have in the reward model.

    `model.layers.0...` of a language model, and both copies in Starling-RM-7B-alpha, are `transformer.layers.0...`.
    """
    if config.freeze.method == "none":
        return {}
    records = {}
    for module, record in scan_or_list(config.freeze, source, device, run).items():
        match = LAYER.match(module)
        assert match is not None, module
        name = "transformer." + module[match.start(1) - len("layers.") :]
        records[name] = replace(record, module=name)
    return records


def listing(config: RmConfig, source: ModelSource) -> dict[str, Record]:
    """Scan as `scan`, but only names and shapes where there is no file with scores yet."""
    listed = replace(config.freeze, method="random") if needs_scan(config.freeze) else config.freeze
    return scan(replace(config, freeze=listed), source, "cpu")


def _apply(config: RmConfig, net: RewardNet, selected: list[str]) -> freeze.FreezeTable:
    if not config.freeze.adapter:
        return freeze.apply(replace(config.freeze, head=True), net, selected)
    # the reward head has no use for an adapter
    table = freeze.apply(replace(config.freeze, head=False), net, selected)
    rows = [
        replace(row, trained=1, parameters_trained=row.parameters_of) if row.type == "head" else row
        for row in table.rows
    ]
    return replace(table, rows=tuple(rows))


def steps(config: RmConfig, rows: int) -> int:
    return prompts.steps(rows, config.rm.prompts_per_step, config.rm.epochs)


def scorer(config: RmConfig, start: Start, net: RewardNet, runtime: Runtime) -> RewardModel:
    """Wrap the network as the reward model that it becomes: its template, tokenizer and truncation."""
    ranking = config.rm
    return RewardModel(
        net,
        start.tokenizer,
        ranking.kind,
        device=runtime.device,
        max_length=ranking.max_length,
        tokens_per_batch=ranking.tokens_per_microbatch,
        trailing_newline=ranking.trailing_newline,
        skipped_id=start.config.pad_token_id if start.is_classifier else None,
    )


def write(start: Start, net: RewardNet, to: Path) -> None:
    """Write the reward model in the layout of `rm.kind`, whole or not at all."""
    whole.write_whole(to, net_writer(start, net))


def describe(config: RmConfig) -> str:
    """Describe what would be trained, and the memory by part, without weights. Raises UserError as the run would."""
    start = find_start(config)
    table, memory = planned(config, start)
    local = Path(config.data.path).expanduser().exists()
    return "\n".join(
        [
            f"run        {config.name}: K-wise training of a {config.rm.kind} reward model, "
            f"{config.rm.epochs:g} epochs, {config.rm.prompts_per_step} prompts a step",
            f"from       {config.model.path} ({start.config.num_hidden_layers} layers, {len(start.tokenizer)} tokens)"
            f"{', shape only: fresh weights' if config.rm.fresh else ''}, {config.model.dtype}",
            f"rows       {config.data.path}"
            + (f": {load_data(config, start).report}" if local else "  (not a local path: read when the run starts)"),
            f"trains     by freeze.method={config.freeze.method}, and the reward head",
            *rendered(table, memory),
        ]
    )


def planned(config: RmConfig, start: Start) -> tuple[freeze.FreezeTable, MemoryPlan]:
    """Plan what would train and the memory by part, without weights and without a scan. Raises UserError."""
    records = listing(config, start.source.model)
    table = _apply(config, empty_net(start), select_as_many(config.freeze, records, config.seed))
    return table, plan_supervised(
        Shape.of(start.config), rm_job(config, table, start.config.num_hidden_layers), scores=True
    )
