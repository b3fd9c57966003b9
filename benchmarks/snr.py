"""How fast and how exact the SNR scan is, beside the full SVD that it replaces.

python benchmarks/snr.py kernel                      one 4096 x 4096 and one 4096 x 14336 matrix, beside svdvals
python benchmarks/snr.py write DIR --layers 32       a checkpoint of Mistral-7B's shapes, random bf16 weights
python benchmarks/snr.py scan DIR [--device cuda]    seconds and peak memory of a whole scan
python benchmarks/snr.py random DIR --layers 2       write, scan and delete: what a layer costs, JSON in the last line
"""

import argparse
import json
import resource
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from starling_train.core import spectrum
from starling_train.models.source import ModelSource
from starling_train.selection.listing import list_matrices
from starling_train.selection.scan import scan_model

VOCABULARY = 32000


def layer_shapes(hidden: int) -> dict[str, tuple[int, int]]:
    """Return Mistral's matrices of a layer; hidden = 4096 is Mistral-7B."""
    intermediate, key_value = hidden * 7 // 2, hidden // 4
    return {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (key_value, hidden),
        "self_attn.v_proj": (key_value, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (intermediate, hidden),
        "mlp.up_proj": (intermediate, hidden),
        "mlp.down_proj": (hidden, intermediate),
    }


def timed(work: Callable, repeats: int, device: str) -> tuple[float, object]:
    """Return the best wall seconds of `repeats`, and the result."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        result = work()
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best, result


def kernel(arguments: argparse.Namespace) -> None:
    """Measure seconds of ours and of svdvals in fp32, and the error of both SNRs against svdvals in fp64."""
    print(f"torch {torch.__version__}, {arguments.device}, {torch.get_num_threads()} threads")
    for n, m in ((4096, 4096), (4096, 14336)):
        generator = torch.Generator().manual_seed(n + m)
        # noise with 64 planted directions, down to a condition of a few thousand
        matrix = 0.02 * torch.randn(n, m, generator=generator)
        planted = torch.randn(n, 64, generator=generator) * torch.logspace(0, -2, 64)
        matrix = (matrix + planted @ torch.randn(64, m, generator=generator) / 20).to(arguments.device)
        ours, score = timed(lambda w=matrix: spectrum.snr(w), arguments.repeats, arguments.device)
        svd, values = timed(lambda w=matrix: torch.linalg.svdvals(w), arguments.repeats, arguments.device)
        print(f"{n} x {m}: ours {ours:.2f} s, svdvals fp32 {svd:.2f} s, {svd / ours:.1f} times faster", flush=True)
        if arguments.exact:
            exact = spectrum.score(torch.linalg.svdvals(matrix.double()), n, m)
            fp32 = spectrum.score(values.double(), n, m)
            errors = [abs(one.snr / exact.snr - 1) for one in (score, fp32)]
            print(f"  relative error of the SNR: ours {errors[0]:.1e}, svdvals fp32 {errors[1]:.1e}", flush=True)


def write(arguments: argparse.Namespace) -> None:
    """Write a checkpoint of Mistral-7B's shapes in shards of one layer, and its index."""
    from safetensors.torch import save_file

    hidden = arguments.hidden
    arguments.directory.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return (0.02 * torch.randn(*shape, generator=generator)).bfloat16()

    shards = [
        {f"model.layers.{layer}.{name}.weight": shape for name, shape in layer_shapes(hidden).items()}
        for layer in range(arguments.layers)
    ]
    shards.append({f"{name}.weight": (VOCABULARY, hidden) for name in ("model.embed_tokens", "lm_head")})
    weight_map = {}
    for number, shapes in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file({name: draw(*shape) for name, shape in shapes.items()}, arguments.directory / file)
        weight_map |= dict.fromkeys(shapes, file)
    (arguments.directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (arguments.directory / "config.json").write_text(json.dumps({"model_type": "mistral"}))


def whole(arguments: argparse.Namespace) -> dict[str, float]:
    """Measure seconds, peak resident memory, and on a GPU the peak of its memory; print and return them."""
    source = ModelSource.open(arguments.directory, needs_config=False)
    listing = list_matrices(source)
    start = time.perf_counter()
    records = scan_model(source, device=arguments.device)
    if arguments.device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    # Gram matrix (its lower triangle) n^2 m and eigenvalues 4/3 n^3 fp64 operations, n the short side
    work = sum(min(r.shape) * r.size + 4 / 3 * min(r.shape) ** 3 for r in listing.values())
    read = 2 * sum(record.size for record in listing.values())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(
        f"{len(records)} matrices, {read / 1e9:.2f} GB: {seconds:.1f} s, {work / seconds / 1e9:.1f} GFLOP/s (fp64), "
        f"{read / seconds / 1e9:.2f} GB/s read, peak resident memory {peak / 1e9:.2f} GB"
    )
    if arguments.device == "cuda":
        print(f"peak GPU memory {torch.cuda.max_memory_allocated() / 1e9:.2f} GB, {torch.cuda.get_device_name()}")
    found = {
        "matrices": len(records),
        "seconds": seconds,
        "fp64_gflops": work / seconds / 1e9,
        "peak_host_gb": peak / 1e9,
    }
    return found | ({"peak_gb": torch.cuda.max_memory_allocated() / 1e9} if arguments.device == "cuda" else {})


def random(arguments: argparse.Namespace) -> None:
    """Scan random layers, the second of two scans being timed warm, and delete them."""
    write(arguments)
    cold, warm = whole(arguments), whole(arguments)
    shutil.rmtree(arguments.directory)
    print(json.dumps({"layers": arguments.layers, "hidden": arguments.hidden, "cold": cold, "warm": warm}))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("kernel")
    one.add_argument("--repeats", type=int, default=3)
    one.add_argument("--exact", action="store_true", help="error against svdvals in fp64 (minutes)")
    one.set_defaults(run=kernel)
    for name, work in (("write", write), ("random", random)):
        writer = commands.add_parser(name)
        writer.add_argument("directory", type=Path)
        writer.add_argument("--layers", type=int, default=32)
        writer.add_argument("--hidden", type=int, default=4096)
        writer.set_defaults(run=work)
    scanner = commands.add_parser("scan")
    scanner.add_argument("directory", type=Path)
    scanner.set_defaults(run=whole)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.run(arguments)


if __name__ == "__main__":
    main()
