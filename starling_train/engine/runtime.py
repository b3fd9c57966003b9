"""The processes and devices of a run: the only file that knows ranks."""

import hashlib
import os
import random

import torch

from starling_train.config import UserError


class Runtime:
    """One process on one device. Random numbers depend on the seed and on what they are for, not on history.

    device: auto, cpu or cuda. threads: CPU threads of torch, None = torch's choice.
    Raises UserError for a device that is not there, and for a launcher's several processes.
    """

    def __init__(self, device: str = "auto", threads: int | None = None, seed: int = 0):
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError("WORLD_SIZE: this version trains in one process; start it without a multi-process launcher")
        if device == "cuda" and not torch.cuda.is_available():
            raise UserError("cluster.device: no CUDA device is visible; use cluster.device=cpu, or check the driver")
        if threads:
            torch.set_num_threads(threads)
        name = device if device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
        self.device = torch.device(name)
        self.rank = 0
        self.world = 1
        self._seed = seed

    def seed_for(self, *purpose: str | int) -> int:
        """A 63-bit seed for one purpose, e.g. ("rollout", step): a resumed run draws what the straight run drew."""
        text = "/".join(str(part) for part in (self._seed, self.rank, *purpose))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1

    def seed_all(self, *purpose: str | int) -> None:
        """Seed every global generator for one purpose."""
        torch.manual_seed(self.seed_for(*purpose))
        random.seed(self.seed_for(*purpose))

    def generator(self, *purpose: str | int) -> torch.Generator:
        """A CPU generator for one purpose."""
        return torch.Generator().manual_seed(self.seed_for(*purpose))

    def peak_memory_gb(self) -> float:
        """Highest memory so far, decimal GB: of the GPU, or of the process on CPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 1e9
        import resource
        import sys

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9

    def describe(self) -> str:
        """The device in words."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"CPU, {torch.get_num_threads()} threads"
