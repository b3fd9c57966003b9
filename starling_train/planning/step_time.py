"""Seconds of a step, estimated: operations and bytes by arithmetic, rates from vendors' data sheets.

Estimates, not measurements: the achieved shares of the rates are assumptions (`plan.matrix_share`,
`plan.bandwidth_share`), and so is how lengths vary (`planning.schedule`, which counts the steps of a rollout).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from starling_train.config.sections import FreezeConfig
from starling_train.core.float64 import scan_note
from starling_train.planning.memory import Judge, TrainingJob
from starling_train.planning.schedule import Schedule
from starling_train.planning.shapes import Shape
from starling_train.run.machine import dtype_note
from starling_train.selection.select import needs_scan

BUS_BYTES_S = 20e9  # assumed between host and GPU, from pinned memory: PCIe 4 with 16 lanes has 32e9 by its data sheet
HOST_BYTES_S = 30e9  # assumed of a process's share of its host's memory, in Adam's pass over moments and copies
HOST_S = 1.2e-3  # seconds of a decoding step in which the GPU waits: for the next token's draw and for Python


@dataclass(frozen=True)
class Device:
    """A kind of GPU. gb: decimal, its nominal memory; tflops: bfloat16, dense; bandwidth_gb_s: of its memory.

    capability: compute capability.
    """

    name: str
    gb: int
    tflops: float
    bandwidth_gb_s: float
    capability: tuple[int, int]


DEVICES = (
    Device("consumer card of 24 GB (RTX 4090)", 24, 165, 1008, (8, 9)),
    Device("A100 of 40 GB", 40, 312, 1555, (8, 0)),
    Device("H100 of 80 GB", 80, 989, 3350, (9, 0)),
    Device("H200 of 141 GB", 141, 989, 4800, (9, 0)),
)


def nearest(gb: float) -> Device:
    """Return the profile whose memory is nearest to `gb`."""
    return min(DEVICES, key=lambda device: abs(device.gb - gb))


def scan_lines(freeze: FreezeConfig, gb: float, device: str = "cuda") -> list[str]:
    """Return the line of a plan on the SNR scan that the run will make, where the GPU of that size is slow at it.

    device: that of the run, cuda or cpu.
    """
    kind = nearest(gb)
    note = scan_note(kind.name, kind.capability)
    return [f"scan       {note}"] if note and needs_scan(freeze) and device == "cuda" else []


def dtype_lines(job: TrainingJob) -> list[str]:
    """Return the line of a plan that offers bfloat16 where this CPU is faster in it."""
    note = dtype_note(job.dtype, job.parameters, job.device)
    return [f"dtype      {note}"] if note else []


@dataclass(frozen=True)
class Work:
    """A step's work of one process.

    prompts, prompt_tokens, response_tokens: how many, counted with each response, and their mean lengths.
    rollouts: of all processes, which wait for the slowest.
    updates: of the optimizer.
    group: responses that have one prompt, which is computed once for them.
    """

    prompts: float
    prompt_tokens: float
    response_tokens: float
    epochs: int
    rollouts: tuple[Schedule, ...]
    updates: int
    group: int = 1

    @property
    def tokens(self) -> float:
        return self.prompts * (self.prompt_tokens / self.group + self.response_tokens)


def seconds(
    policy: Shape,
    judges: Sequence[Judge],
    job: TrainingJob,
    work: Work,
    device: Device,
    matrix_share: float,
    bandwidth_share: float,
) -> dict[str, float]:
    """Estimate the seconds by phase; a token takes 2 operations a parameter forwards, and as many for each gradient."""
    rate, bandwidth = device.tflops * 1e12 * matrix_share, device.bandwidth_gb_s * 1e9 * bandwidth_share
    size = 4 if job.dtype == "float32" else 2
    head = policy.vocabulary * policy.hidden
    layers = policy.layers * policy.layer_parameters()
    above = job.layers_above_lowest * policy.layer_parameters()
    responses = work.prompts * work.response_tokens

    # every decoding step reads all weights, and keys and values of its rows; then it is the host's turn
    def decoding(rollout: Schedule) -> float:
        read = (rollout.steps * (layers + head) + rollout.read * policy.kv_values()) * size / bandwidth
        computed = 2 * (layers + head) * rollout.rows / rate
        return max(read, computed) + rollout.steps * HOST_S

    rollout = max(map(decoding, work.rollouts)) + 2 * layers * work.prompts / work.group * work.prompt_tokens / rate

    critics = 0 if job.critic in ("head", "none") else 1
    passes = 2 + critics  # policy, reference, and a critic of its own
    scoring = 2 * (passes * above * work.tokens + 2 * head * responses)
    if job.critic == "separate":
        scoring += 2 * (layers - above) * work.tokens
    judging = sum(2 * one.shape.layers * one.shape.layer_parameters() * work.tokens for one in judges)

    again = 2 if job.gradient_checkpointing else 0
    policy_pass = (2 + 2 + again) * above + 2 * job.trainable
    critic_pass = {"none": 0, "head": 0, "twin": policy_pass, "separate": (6 + again) * layers}[job.critic]
    update = work.epochs * ((policy_pass + critic_pass) * work.tokens + 4 * head * responses)
    phases = {"rollout": rollout, "scoring": (scoring + judging) / rate, "update": update / rate}
    return phases | _through_host_memory(policy, judges, job, work, size)


def _through_host_memory(
    policy: Shape, judges: Sequence[Judge], job: TrainingJob, work: Work, size: int
) -> dict[str, float]:
    """Estimate what it takes longer because something is in host memory: copies over the bus, and Adam there."""
    seconds = {}
    if job.optimizer_offloaded:
        learning = job.trainable + job.critics_trunk(policy)
        copies = 2 * size / BUS_BYTES_S  # a gradient comes, a weight goes
        adam = (4 * 4 + 3 * 4 + 2 * (size + 4)) / HOST_BYTES_S  # read, written; gradient and weight change their types
        seconds["optimizer in host memory"] = work.updates * learning * (copies + adam)
    for judge in judges:
        if judge.offloaded:
            seconds[f"{judge.part} to the device"] = judge.weights() / BUS_BYTES_S
    return seconds
