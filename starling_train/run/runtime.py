"""The processes and devices of a run: the only file that knows ranks."""

import hashlib
import os
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from starling_train.config.fields import UserError
from starling_train.config.sections import ClusterConfig
from starling_train.core.masked import Moments, moments
from starling_train.run.out_of_memory import OutOfMemory, is_out_of_memory, without_memory

Item = TypeVar("Item")
LOST = ("gloo/", "ProcessGroup", "NCCL")  # in torch's plain RuntimeError about a peer that is gone
PATIENCE = timedelta(hours=12)  # for what the first process alone does, e.g. a scan of a large model


def device_kind(device: str) -> str:
    """Return cpu or cuda, whichever `cluster.device` means here. Raises UserError where it does not exist."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("cluster.device: no CUDA device is visible; use cluster.device=cpu, or check the driver")
    return device if device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")


class Runtime:
    """This process among the processes of a run, on one device; alone without a launcher (torchrun, accelerate).

    Random numbers depend on the seed and on their purpose, neither on history nor on the process.

    device: auto, cpu or cuda.
    threads: CPU threads of torch, None = torch's choice.
    timeout_s: seconds that a process waits for the others before it gives up the run.
    cudnn_attention: whether torch may choose cuDNN's attention on a GPU.
    Raises UserError for a device that does not exist.
    """

    @classmethod
    def of(cls, cluster: ClusterConfig, seed: int = 0) -> "Runtime":
        """Make the runtime that the section `cluster` asks for."""
        return cls(cluster.device, cluster.threads, seed, cluster.timeout_s, cluster.cudnn_attention)

    def __init__(
        self,
        device: str = "auto",
        threads: int | None = None,
        seed: int = 0,
        timeout_s: float = 1800.0,
        cudnn_attention: bool = False,
    ):
        self.rank, self.world, local = (_count(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if self.world > 1 and missing:
            raise UserError(
                f"WORLD_SIZE: is {self.world}, but {', '.join(missing)} is not set; start with torchrun or accelerate "
                "launch, or unset it"
            )
        kind = device_kind(device)
        if threads:
            torch.set_num_threads(threads)
        if kind == "cuda" and local >= torch.cuda.device_count():
            raise UserError(
                f"cluster.device: {local + 1} processes or more on this host, but {torch.cuda.device_count()} GPUs; "
                "start one process a GPU"
            )
        if kind == "cuda":
            # it would come first on Hopper, and packed sequences have new shapes in every micro-batch: a plan for each
            torch.backends.cuda.enable_cudnn_sdp(cudnn_attention)
        self.device = torch.device(kind, local) if kind == "cuda" and self.world > 1 else torch.device(kind)
        self._seed = seed
        self._patient: dist.ProcessGroup | None = None
        if self.world > 1:
            if kind == "cuda":
                torch.cuda.set_device(self.device)
            if not dist.is_initialized():  # a second run in the same process, in tests
                backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
                dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run's files and speaks for it."""
        return self.rank == 0

    def shard(self, items: Sequence[Item]) -> list[Item]:
        """Return this process's share of the items: every `world`-th one."""
        return list(items[self.rank :: self.world])

    def gather(self, items: Sequence[Item], group: int = 1) -> list[Item]:
        """Collect the items of all processes, in one order on all: `gather(shard(x)) == x`, also for results of x.

        group: results of each of x, side by side.
        """
        if self.world == 1:
            return list(items)
        shards: list[Any] = [None] * self.world
        dist.all_gather_object(shards, list(items))
        longest = max(map(len, shards))
        return [item for i in range(0, longest, group) for shard in shards for item in shard[i : i + group]]

    def on_first(self, make: Callable[[], Item]) -> Item:
        """Return, on all processes, what `make` gives on the first; it may take longer than `timeout_s`.

        A UserError that it raises is raised on all.
        """
        if self.world == 1:
            return make()
        if self._patient is None:
            self._patient = dist.new_group(timeout=PATIENCE, backend="gloo")
        box: list[Any] = [None, None]  # the result, or what was wrong
        if self.is_main:
            try:
                box[0] = make()
            except UserError as error:
                box[1] = error
        dist.broadcast_object_list(box, src=0, group=self._patient)
        if box[1] is not None:
            raise box[1]
        return box[0]

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """Sum over all processes, in float64."""
        return self._reduced(numbers, dist.ReduceOp.SUM)

    def moments(self, x: Tensor, mask: Tensor) -> Moments:
        """Return the moments of x where mask is True, over all processes."""
        return Moments(*(torch.tensor(n, dtype=torch.float64) for n in self.sum([float(m) for m in moments(x, mask)])))

    def minimum(self, numbers: Sequence[float]) -> list[float]:
        """Return the smallest over all processes."""
        return self._reduced(numbers, dist.ReduceOp.MIN)

    def maximum(self, numbers: Sequence[float]) -> list[float]:
        """Return the largest over all processes."""
        return self._reduced(numbers, dist.ReduceOp.MAX)

    def _reduced(self, numbers: Sequence[float], how: Any) -> list[float]:
        tensor = torch.tensor(list(numbers), dtype=torch.float64)
        if self.world > 1:
            dist.all_reduce(tensor, how)
        return tensor.tolist()

    def sum_tensors(self, tensors: Sequence[Tensor]) -> None:
        """Sum tensors of one type over all processes, in place, many small ones in one message."""
        if self.world == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.flatten() for tensor in bucket])
            dist.all_reduce(flat)
            for tensor, summed in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
                tensor.copy_(summed.view_as(tensor))

    def seed_for(self, *purpose: str | int) -> int:
        """Derive a 63-bit seed for one purpose, e.g. ("rollout", step): a resumed run draws the same."""
        text = "/".join(map(str, (self._seed, 0, *purpose)))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1

    def seed_all(self, *purpose: str | int) -> None:
        """Seed every global generator for one purpose, alike on all processes."""
        torch.manual_seed(self.seed_for(*purpose))
        random.seed(self.seed_for(*purpose))

    def generator(self, *purpose: str | int) -> torch.Generator:
        """Make a CPU generator for one purpose, alike on all processes."""
        return torch.Generator().manual_seed(self.seed_for(*purpose))

    @contextmanager
    def fails_together(self) -> Iterator[None]:
        """End this process, when another one is lost within, with one line and exit code 1 instead of a traceback.

        One of several that runs out of memory ends at once, with exit code 2: the others may be waiting for it.
        """
        try:
            yield
        except OutOfMemory as error:
            if self.world > 1:
                _end(f"rank {self.rank}: {error}", 2)
            raise
        except (MemoryError, RuntimeError) as error:
            if self.world > 1 and is_out_of_memory(error):
                _end(f"rank {self.rank}: {without_memory(error)}", 2)
            is_lost = isinstance(error, dist.DistError) or any(word in str(error) for word in LOST)
            if self.world == 1 or not is_lost:
                raise
            reason = str(error).strip().splitlines()[0][:200]
            _end(
                f"rank {self.rank}: another process of the run is gone, or does not answer within cluster.timeout_s "
                f"({reason}); the last checkpoint is intact: start the same command again",
                1,
            )
        if self.world > 1 and dist.is_initialized():
            dist.barrier()
            dist.destroy_process_group()

    def peak_memory_gb(self) -> float:
        """Return the highest memory so far, decimal GB, of the process that took most: on its GPU, else its CPU."""
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device)
        else:
            import resource

            used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            peak = used if sys.platform == "darwin" else used * 1024
        return self.maximum([peak / 1e9])[0]

    def describe(self) -> str:
        """Describe the device, and how many there are."""
        name = (
            torch.cuda.get_device_name(self.device)
            if self.device.type == "cuda"
            else f"CPU, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"
        )
        return name if self.world == 1 else f"{self.world} x {name}"


def _end(line: str, code: int) -> NoReturn:
    """Say why, and end this process at once: an orderly end would wait for one that is gone, or that waits for us."""
    print(f"error: {line}", file=sys.stderr, flush=True)
    os._exit(code)


def _count(name: str) -> int:
    """Read a number that a launcher has put into the environment."""
    text = os.environ.get(name, "1" if name == "WORLD_SIZE" else "0")
    if not text.isdigit():
        raise UserError(f"{name}: '{text}' is not a number; start with torchrun or accelerate launch, or unset it")
    return int(text)


def _buckets(tensors: Sequence[Tensor], elements: int = 2**25) -> Iterator[list[Tensor]]:
    """Yield neighbours of at most about `elements` together, or single tensors."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(t.numel() for t in bucket) + tensor.numel() > elements:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
