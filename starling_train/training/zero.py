"""DeepSpeed ZeRO over the processes of a run: optimizer state (1), gradients too (2), weights too (3) in shards.

DeepSpeed is called directly: through accelerate a CPU run would get plain data parallelism, whatever stage it requests.

A shard is a process's share of the flat float32 copies (masters) of a group of tensors, with their moments. Stages 1
and 2 concatenate a whole group and cut it; stage 3 cuts every tensor, in sub-groups. Checkpoints hold whole tensors:
every read and write below gathers one tensor, or cuts one.
Source: Rajbhandari et al. 2019, 'ZeRO: Memory Optimizations Toward Training Trillion Parameter Models', section 5.
"""

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from starling_train.config.fields import UserError
from starling_train.config.sections import ClusterConfig, OptimConfig
from starling_train.files.tensor_file import Later, Tensors
from starling_train.models.actors import Actors, Groups
from starling_train.models.budget import Budget
from starling_train.models.packing import without_hooks
from starling_train.planning.memory import BUCKET
from starling_train.run.out_of_memory import FRAGMENTS, in_one_line
from starling_train.run.runtime import Runtime
from starling_train.training.adam import adam_options, fit_together, rates_of, shapes_of

Result = TypeVar("Result")
MOMENTS = ("exp_avg", "exp_avg_sq")
NO_ROOM_TO_STEP = (
    "cluster.zero_stage: out of memory in the optimizer's step ({first}); use more processes or a higher stage, "
    "cluster.offload=optimizer, or train fewer matrices; "
    + FRAGMENTS
    + "; a run that has checkpoints goes on from the last"
)


class ZeroOptimizer:
    """As `LocalOptimizer`, for a module whose trainable tensors DeepSpeed shards: the same numbers, less memory.

    groups: trainable parameters by name, of the policy and of the critic; the latter may be empty.
    What it saves is what `LocalOptimizer` saves, so a run can resume with another stage and number of processes.
    Every process must call every method, in step, and compute through `module`, which is DeepSpeed's engine.
    """

    def __init__(
        self,
        module: nn.Module,
        groups: Groups,
        config: OptimConfig,
        cluster: ClusterConfig,
        runtime: Runtime,
    ):
        import deepspeed

        self._model, self._config, self._runtime, self.stage = module, config, runtime, cluster.zero_stage
        self._is_offloaded = cluster.offload == "optimizer"
        self._groups = tuple(group for group in groups if group)  # DeepSpeed cannot shard nothing
        self._parameters = groups[0] | groups[1]
        # DeepSpeed casts all of them to the policy's type; what was float32 before stays float32 in checkpoints
        self._is_float32 = {name: p.dtype == torch.float32 for name, p in self._parameters.items()}
        # the type that DeepSpeed computes in is that of the weights; a value head or adapters may be float32 beside
        # them
        dtype = torch.bfloat16 if any(p.dtype == torch.bfloat16 for p in module.parameters()) else torch.float32
        adam = torch.optim.AdamW([{"params": list(group.values()), "lr": 0.0} for group in self._groups],
                                 fused=True, **adam_options(config))  # fmt: skip
        buffers = {name: buffer.dtype for name, buffer in module.named_buffers()}
        self.module = deepspeed.initialize(
            model=module,
            optimizer=adam,
            config=settings(config, cluster, dtype, runtime, sum(p.numel() for p in self._parameters.values())),
            dist_init_required=False,
        )[0]
        if buffers != {name: buffer.dtype for name, buffer in module.named_buffers()}:
            raise UserError(
                "cluster.zero_stage: this release of DeepSpeed rounds the model's rotary frequencies; "
                "pip install 'starling-train[zero]'"
            )
        assert self.module.zero_optimization_stage() == cluster.zero_stage, "DeepSpeed took another stage"
        self.applied = 0
        self._trains_policy = True
        self._init_state()
        if isinstance(module, Actors):
            module.rebuild_views()  # DeepSpeed has hung hooks onto the layers

    def set_rates(self, step: int, steps: int, train_policy: bool = True) -> float:
        """See `LocalOptimizer.set_rates`."""
        policy, critic = rates_of(self._config, step, steps)
        rates = (policy if train_policy else 0.0, critic)
        for group, rate in zip(self._adam.param_groups, rates, strict=False):  # without a critic there is one group
            group["lr"] = rate
        self._trains_policy = train_policy
        return policy

    def rounds(self, own: int) -> int:
        """Return the most micro-batches of any process: gradients are exchanged after each."""
        # a process with fewer computes a spare micro-batch with weight zero: a missing one would block the others
        return max(1, int(self._runtime.maximum([own])[0]))

    def backward(self, loss: Tensor, is_last: bool) -> None:
        """Add the gradients of a micro-batch's loss; they are summed over processes. is_last: of the mini-batch."""
        self.module.set_gradient_accumulation_boundary(is_last)
        # times the processes, because DeepSpeed averages gradients, and our losses are already parts of the mean
        self.module.backward(loss * self._runtime.world, scale_wrt_gas=False)

    def attempt(self, budget: Budget, phase: Callable[[int], Result]) -> Result:
        """Run `phase(amount)` once: other processes wait in the middle of it, so it cannot be repeated."""
        return budget.once(phase)

    def step(self, is_finite: bool = True) -> float:
        """Step as `LocalOptimizer.step`. DeepSpeed itself checks that gradients are finite, on all processes alike."""
        with in_one_line(lambda first: NO_ROOM_TO_STEP.format(first=first)):
            self.module.step()
        if self.module.optimizer.overflow:
            return math.nan
        self.applied += 1
        if not self._trains_policy:  # the policy's step at rate 0 must not count in Adam's bias correction
            for state, _ in self._states(0):
                state["step"].zero_()
        return float(self.module.get_global_grad_norm())

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Gather all weights on every process, for reading: once for a whole rollout, not once a token."""
        if self.stage < 3:
            yield
            return
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(self._model.parameters())), without_hooks(self._model):
            yield

    def trainable_tensors(self) -> Tensors:
        """Return the parameters that a checkpoint holds, each to be gathered on all processes at the same time."""
        return {name: self._later(name, None, dtype) for name, (_, dtype) in self._shapes().items()}

    def state_tensors(self) -> Tensors:
        """See `LocalOptimizer.state_tensors`; each to be gathered on all processes at the same time."""
        tensors: dict[str, Tensor | Later] = {f"{name}/master": self._later(name, None) for name in self._copied()}
        for index, group in enumerate(self._groups):
            steps = float(self._states(index)[0][0]["step"])
            for name in group if steps else ():
                tensors |= {f"{name}/{key}": self._later(name, key) for key in MOMENTS}
                tensors[f"{name}/step"] = torch.tensor(steps)
        return tensors

    def _later(self, name: str, key: str | None, dtype: torch.dtype = torch.float32) -> Later:
        parameter = self._parameters[name]
        shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
        return Later(shape, dtype, lambda: self._get(parameter, key).to(dtype))

    def _copied(self) -> list[str]:
        """Name the parameters that a checkpoint holds in a shorter type than their float32 copy."""
        return [name for name, is_float32 in self._is_float32.items() if not is_float32]

    def _get(self, parameter: nn.Parameter, key: str | None) -> Tensor:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        if key is None:
            return safe_get_full_fp32_param(parameter)
        return safe_get_full_optimizer_state(parameter, key)

    def fits(self, trainable: dict[str, Tensor], state: dict[str, Tensor]) -> bool:
        """See `LocalOptimizer.fits`."""
        return shapes_of(trainable) == self._shapes() and fit_together(state, self._parameters, self._copied())

    def _shapes(self) -> dict[str, tuple[torch.Size, torch.dtype]]:
        """Return the shape and type of each of `trainable_tensors`."""
        return {
            name: (getattr(p, "ds_shape", p.shape), torch.float32 if self._is_float32[name] else p.dtype)
            for name, p in self._parameters.items()
        }

    def saved_bytes(self) -> int:
        """Count the bytes of a checkpoint, all processes together, once every parameter has been updated."""
        return sum(
            math.prod(shape) * (dtype.itemsize + (8 if self._is_float32[name] else 12))
            for name, (shape, dtype) in self._shapes().items()
        )

    def describe(self) -> str:
        """See `LocalOptimizer.describe`."""
        where = ", in host memory" if self._is_offloaded else ""
        return f"{self.bytes_here() / 1e9:.3g} GB (ZeRO stage {self.stage}{where})"

    def bytes_here(self) -> int:
        """Count the bytes of moments and float32 copies that this process holds."""
        own = [
            tensor for i in range(len(self._groups)) for state, p in self._states(i) for tensor in (p, *state.values())
        ]
        return sum(tensor.numel() * tensor.element_size() for tensor in own)

    @torch.no_grad()
    def load(self, trainable: dict[str, Tensor], state: dict[str, Tensor]) -> None:
        """Undo `trainable_tensors` and `state_tensors`."""
        for name, parameter in self._parameters.items():
            master = trainable[name] if self._is_float32[name] else state[f"{name}/master"]
            self._set(parameter, master.float(), None)
            for key in MOMENTS:
                if f"{name}/{key}" in state:
                    self._set(parameter, state[f"{name}/{key}"], key)
        for index, group in enumerate(self._groups):
            steps = [float(state[f"{name}/step"]) for name in group if f"{name}/step" in state]
            for shard, _ in self._states(index):
                shard["step"].fill_(steps[0] if steps else 0.0)
        self._masters_to_weights(trainable)

    def _set(self, parameter: nn.Parameter, value: Tensor, key: str | None) -> None:
        """Put this process's shard of a whole tensor where it belongs."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        value = value.to(self._runtime.device)
        if self.stage < 3:
            if key is None:
                safe_set_full_fp32_param(parameter, value)
            else:
                safe_set_full_optimizer_state(parameter, value, key)
            return
        # DeepSpeed's own setter requires sizes that the number of processes divides; our slice may be short or empty at
        # the end of a tensor, and the padding behind it stays zero
        zero = self.module.optimizer
        shard, _ = zero._get_fp32_opt_state_partition(parameter, release_swap_buffers=False, optim_state_key=key)
        start = shard.numel() * zero._get_param_partition_rank(parameter)
        mine = value.flatten()[start : start + shard.numel()]
        shard.data.zero_()
        shard.data[: mine.numel()].copy_(mine)

    def _masters_to_weights(self, trainable: dict[str, Tensor]) -> None:
        # the weights in the model's type: DeepSpeed would copy the masters into them only in its first step
        if self.stage < 3:
            for name, parameter in self._parameters.items():
                parameter.data.copy_(trainable[name])
            return
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(self._parameters.values()), modifier_rank=0):
            if self._runtime.is_main:
                for name, parameter in self._parameters.items():
                    parameter.data.copy_(trainable[name])

    @property
    def _adam(self) -> torch.optim.Optimizer:
        return self.module.optimizer.optimizer

    def _shards(self, index: int) -> list[Tensor]:
        """Return the shards, flat float32, of a group (0 the policy's, 1 the critic's) that this process holds."""
        zero = self.module.optimizer
        if self.stage < 3:
            return [zero.single_partition_of_fp32_groups[index]]
        return [p for i, p in enumerate(zero.fp32_partitioned_groups_flat) if zero.sub_group_to_group_id[i] == index]

    def _states(self, index: int) -> list[tuple[dict[str, Tensor], Tensor]]:
        """Return (Adam's state, float32 shard) of a group's shards."""
        return [(self._adam.state[shard], shard) for shard in self._shards(index)]

    def _init_state(self) -> None:
        """Make moments of zero now; Adam would make them in its first step, too late to load a checkpoint into."""
        for shard in [shard for index in range(len(self._groups)) for shard in self._shards(index)]:
            self._adam.state[shard] = {"step": torch.tensor(0.0, device=shard.device)} | {
                key: torch.zeros_like(shard) for key in MOMENTS
            }
        if self.stage < 3:
            # lets DeepSpeed find each tensor's slice of the moments, which it otherwise also does in the first step
            self.module.optimizer._lazy_init_hp_params_optimizer_state()


def settings(
    config: OptimConfig, cluster: ClusterConfig, dtype: torch.dtype, runtime: Runtime, trained: int
) -> dict[str, Any]:
    """Return DeepSpeed's settings. trained: parameters that train, in all."""
    # gradients of one layer travel while those of the next are computed, from a second buffer (planning.memory); on a
    # CPU gloo and the backward pass would only take cores from each other
    overlaps = runtime.device.type == "cuda"
    zero: dict[str, Any] = {"stage": cluster.zero_stage, "overlap_comm": overlaps, "contiguous_gradients": True}
    zero["reduce_bucket_size"] = min(BUCKET, trained)  # a buffer of that many elements is held: no more than there are
    if cluster.offload == "optimizer":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": overlaps}
    if cluster.zero_stage == 3:
        zero |= {"stage3_param_persistence_threshold": 0}
    return {
        "train_batch_size": runtime.world,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.max_gradient_norm,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "zero_optimization": zero,
    }


def check_installed() -> None:
    """Raise UserError without DeepSpeed."""
    try:
        import deepspeed  # noqa: F401
    except ImportError:
        raise UserError("cluster.zero_stage: DeepSpeed is not installed; pip install 'starling-train[zero]'") from None


LONGEST_COMPILATION_S = 1800.0


def remove_old_locks() -> None:
    """Remove locks of processes that were killed while torch compiled: every later one would wait for ever."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "torch_extensions"
    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or default).expanduser()
    for lock in folder.glob("**/lock"):
        with suppress(OSError):  # another process of the run may be faster
            if time.time() - lock.stat().st_mtime > LONGEST_COMPILATION_S:
                lock.unlink()
