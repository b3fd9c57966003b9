"""What a run of `dpo` or `rm` needs on N devices, from the shape of its model: memory by part, the fewest devices."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from starling_train.config import guard
from starling_train.config.dpo import DpoConfig
from starling_train.config.fields import UserError
from starling_train.config.plan import DevicesConfig
from starling_train.config.rm import RmConfig
from starling_train.models.reward import classifier
from starling_train.models.reward.net import Network, RewardNet
from starling_train.planning import shapes
from starling_train.planning.memory import MemoryPlan, Share, TrainingJob, plan_supervised, planned_device
from starling_train.planning.planner import fewest, in_words
from starling_train.planning.shapes import Shape
from starling_train.planning.step_time import DEVICES, scan_lines
from starling_train.planning.what_trains import what_trains_in, what_trains_of
from starling_train.selection.freeze import FreezeTable


@dataclass(frozen=True)
class SupervisedPlanner:
    """The arithmetic for one configuration. prompts: of a step. scores: a reward model is trained."""

    shape: Shape
    job: TrainingJob
    table: FreezeTable
    prompts: int
    scores: bool

    @classmethod
    def find(cls, config: DpoConfig | RmConfig) -> "SupervisedPlanner":
        """Plan from config.json, or from what is known of published models. Raises UserError."""
        shape = shapes.find(config.model.path, "model.path", shapes.KNOWN_POLICIES, config.model.path)
        if isinstance(config, DpoConfig):
            return cls.of(config, shape, what_trains_of(config.freeze, shape.config(), config.seed, config.model.path))
        # the reward head always trains, and has no use for an adapter
        freeze = replace(config.freeze, head=not config.freeze.adapter)
        network = _empty(config.rm.kind, shape.config())
        return cls.of(config, shape, what_trains_in(freeze, network, config.seed, config.model.path))

    @classmethod
    def of(cls, config: DpoConfig | RmConfig, shape: Shape, table: FreezeTable) -> "SupervisedPlanner":
        """Plan for a model and for what of it trains."""
        if isinstance(config, DpoConfig):
            return cls(shape, dpo_job(config, table, shape.layers), table, config.dpo.prompts_per_step, False)
        return cls(shape, rm_job(config, table, shape.layers), table, config.rm.prompts_per_step, True)

    def memory(self, processes: int, stage: int) -> MemoryPlan:
        """Plan the bytes on each device."""
        return plan_supervised(self.shape, self.job, scores=self.scores, share=Share(processes, stage))


def _empty(kind: str, model_config: Any) -> Network:
    """Build an empty reward model."""
    if kind == "sequence_classification":
        model_config.num_labels = 1
        return classifier.net_of(classifier.build(model_config, "meta"), starts=False)
    with torch.device("meta"):
        return RewardNet.from_config(model_config)


def dpo_job(config: DpoConfig, table: FreezeTable, layers: int) -> TrainingJob:
    """Describe the work of a process in `dpo`, at the longest pairs."""
    evaluates = config.evaluation.every and (config.evaluation.responses or config.evaluation.suites)
    return TrainingJob(
        parameters=table.parameters_of,
        trainable=table.parameters_trained,
        dtype=config.model.dtype,
        minibatch_tokens=2 * config.dpo.max_length,
        tokens_per_microbatch=config.dpo.tokens_per_microbatch,
        layers_above_lowest=layers - min(table.lowest_layer, layers),
        slots=config.rollout.slots if evaluates else 0,
        sequence_tokens=config.data.max_prompt_tokens + config.rollout.max_new_tokens,
        prompt_tokens=config.data.max_prompt_tokens,
        gradient_checkpointing=config.model.gradient_checkpointing,
        eight_bit=config.optim.eight_bit,
        adapter=bool(config.freeze.adapter),
        load_in=config.model.load_in,
        optimizer_offloaded=config.cluster.offload == "optimizer",
        device=planned_device(config.cluster.device),
        engine=config.rollout.engine,
        cache=config.rollout.cache_gb * 1e9,
    )


def rm_job(config: RmConfig, table: FreezeTable, layers: int) -> TrainingJob:
    """Describe the work of a process in `rm`, at the longest conversations."""
    return TrainingJob(
        parameters=table.parameters_of,
        trainable=table.parameters_trained,
        dtype=config.model.dtype,
        minibatch_tokens=config.rm.max_length,
        tokens_per_microbatch=config.rm.tokens_per_microbatch,
        layers_above_lowest=layers - min(table.lowest_layer, config.freeze.lowest_layer),
        gradient_checkpointing=config.model.gradient_checkpointing,
        eight_bit=config.optim.eight_bit,
        optimizer_offloaded=config.cluster.offload == "optimizer",
        device=planned_device(config.cluster.device),
    )


def of_run(config: DpoConfig | RmConfig, model: Any, table: FreezeTable, device: str, processes: int) -> float:
    """Return the planned peak of each process of a run, decimal GB.

    model: transformers' configuration of what is trained. table: what trains. device: the one it runs on.
    """
    planner = SupervisedPlanner.of(config, Shape.of(model), table)
    planner = replace(planner, job=replace(planner.job, device=device))
    return planner.memory(processes, config.cluster.zero_stage).total / 1e9


def describe(config: DpoConfig | RmConfig, devices: DevicesConfig) -> str:
    """Render the text of the command `plan` for a run of dpo or rm. Raises UserError."""
    planner, count, stage = SupervisedPlanner.find(config), devices.processes, config.cluster.zero_stage
    if config.optim.eight_bit and stage and count > 1:
        raise UserError("optim.eight_bit: 8-bit moments cannot be sharded; use cluster.zero_stage=0, or leave it out")
    memory = planner.memory(count, stage)
    fits = memory.total <= devices.gpu_gb * 1e9
    return "\n".join(
        [
            f"plan       {config.name} ({'rm' if planner.scores else 'dpo'}): {count} "
            f"process{'es' if count > 1 else ''} of one device each, "
            f"{'ZeRO stage ' + str(stage) if count > 1 and stage else 'nothing sharded'}",
            f"trains     by freeze.method={config.freeze.method}",
            *([] if isinstance(config, RmConfig) else guard.described(config)),
            "",
            planner.table.render(),
            "",
            f"memory of each device, at the longest {'conversations' if planner.scores else 'pairs'}",
            memory.render(),
            f"{'fits' if fits else 'does not fit'} on a device of {devices.gpu_gb:g} GB; not counted: the CUDA context "
            "and what allocators lose; a device has some 5 % more bytes than its nominal GB, which is left for them",
            "",
            f"step       {planner.prompts} prompts; its time is estimated for ppo alone",
            *scan_lines(config.freeze, devices.gpu_gb, planned_device(config.cluster.device)),
            "",
            "fewest devices that hold it",
            *(
                f"  {kind.gb:>3} GB  "
                + in_words(fewest(planner.memory, kind.gb, planner.prompts, stage, config.optim.eight_bit), stage)
                for kind in DEVICES
            ),
        ]
    )
