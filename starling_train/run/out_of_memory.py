"""Running out of memory: how allocators and libraries say so, and how the user is told. Standard library alone."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from starling_train.config.fields import UserError

# torch's allocators on a CPU (Linux; Windows and macOS) and on a GPU, the CUDA runtime and driver, NVIDIA's libraries
# for their workspaces, NCCL for its buffers (in two releases' words), Triton for a kernel
OUT_OF_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
    "CUSPARSE_STATUS_ALLOC_FAILED",
    "Cuda failure 2 'out of memory'",
    "Cuda failure 'out of memory'",
    "Failed to CUDA calloc",
    "Triton Error [CUDA]: out of memory",
)
# what ending a graph's capture says, after whatever went wrong within it: that is the error's context
IN_CAPTURE = ("during capture", "stream is capturing", "cudaErrorStreamCapture")
REMEDY = (
    "train fewer matrices, use a smaller critic (algorithm.critic=head), model.gradient_checkpointing=true, or a "
    "larger GPU"
)
FRAGMENTS = "PYTORCH_ALLOC_CONF=expandable_segments:True helps where much is reserved and unallocated"


class OutOfMemory(UserError):
    """Memory ran out where less at a time does not help: one line with what to do."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out on a GPU or a CPU; most of those who say so have no error class for it."""
    if isinstance(error, MemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    if any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__):  # torch's, whatever it says
        return True
    text = str(error)
    if any(words in text for words in OUT_OF_MEMORY):
        return True
    first = error.__context__
    return first is not None and any(words in text for words in IN_CAPTURE) and is_out_of_memory(first)


def first_line(error: BaseException) -> str:
    """Return the first line of what an allocator said; of a capture that failed, of what went wrong within it."""
    while error.__context__ is not None and any(words in str(error) for words in IN_CAPTURE):
        error = error.__context__
    lines = str(error).strip().splitlines()
    return lines[0][:120] if lines else type(error).__name__


def without_memory(error: BaseException) -> str:
    """Return the line for memory that ran out in a place that has no key of its own for it."""
    return (
        f"out of memory ({first_line(error)}); let less go through the model at a time (tokens_per_batch, "
        f"tokens_per_microbatch, rollout.slots), or use a device with more memory; {FRAGMENTS}"
    )


@contextmanager
def in_one_line(describe: Callable[[str], str]) -> Iterator[None]:
    """Raise OutOfMemory instead of an allocator's error. describe: makes the line from the first line of that error."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(describe(first_line(error))) from error
