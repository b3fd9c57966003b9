"""What a lean decoder does between its matrix products, and on CPUs with AMX the products too, compiled from C++
(`kernels.cpp`, `tile_products.cpp`) when it is first needed.

As operations of torch these steps take as long as the products: attention reads the padding behind short rows and a
head's keys anew for each of its queries, a norm is eight passes over its input, a draw six over all logits. Where no
g++ is found, or what it makes cannot be loaded, torch computes the same; without tiles, oneDNN the products.
"""

import ctypes
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

SOURCES = "kernels.cpp", "tile_products.cpp"  # beside this file; a library each, for not every assembler knows tiles
FLAGS = ["-O3", "-march=native", "-std=c++17", "-fPIC", "-shared", "-fopenmp", "-fno-math-errno", "-fno-trapping-math"]
SECONDS = 120  # that a compiler may take; it takes two for each
LARGEST_HEAD = 512
TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
_WHOLE, _REAL, _AT = ctypes.c_int64, ctypes.c_float, ctypes.c_void_p
SIGNATURES: dict[str, list[Any]] = {
    "norm": [*[_AT] * 3, *[_WHOLE] * 2, _REAL, ctypes.c_int],
    "draw": [*[_AT] * 3, *[_WHOLE] * 2, _REAL, ctypes.c_int],
    "attend": [*[_AT] * 9, *[_WHOLE] * 6, *[_REAL] * 2, ctypes.c_int],
}
OF_TILES: dict[str, list[Any]] = {"product": [*[_AT] * 5, ctypes.c_int, *[_WHOLE] * 3, ctypes.c_int]}
THEN = {"": 0, "silu": 1, "times": 2, "plus": 3}


class Kernels:
    """The compiled functions. Tensors are contiguous, on the CPU, in float32 or bfloat16; each row stands alone.

    Attributes: `has_tiles`, whether this CPU multiplies tiles of bfloat16 (AMX), so that `product` can be called.
    """

    def __init__(self, library: ctypes.CDLL, tiles: ctypes.CDLL | None):
        self._functions: dict[tuple[str, torch.dtype], Any] = {}
        self._take(library, SIGNATURES)
        self.has_tiles = False
        # absent where the compiler knows no tiles; 0 where the system does not grant them
        if tiles is not None and hasattr(tiles, "may_use_tiles") and tiles.may_use_tiles():
            self._take(tiles, OF_TILES)
            self.has_tiles = self._multiplies()

    def _take(self, library: ctypes.CDLL, signatures: dict[str, list[Any]]) -> None:
        for name, arguments in signatures.items():
            for dtype, suffix in TYPES.items():
                function = self._functions[name, dtype] = library[f"{name}_{suffix}"]
                function.argtypes, function.restype = arguments, None

    def _multiplies(self) -> bool:
        """Return whether a product by tiles is right here: a model's start check may not come across it."""
        draw = torch.Generator().manual_seed(0)
        states, weight = (torch.randn(count, 64, generator=draw).bfloat16() for count in (33, 35))
        found = self.product(states, TiledWeight(weight, None), dtype=torch.float32)
        return torch.allclose(found, states.float() @ weight.float().T, rtol=1e-4, atol=1e-4)

    def norm(self, states: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """Divide (n, d) by its root mean square and multiply by weight (d,), as the RMSNorm of Llama."""
        out = torch.empty_like(states)
        self._run("norm", states.dtype, out, states, weight, *states.shape, epsilon)
        return out

    def attend(
        self,
        projected: Tensor,
        norms: tuple[Tensor, Tensor] | None,
        angles: tuple[Tensor, Tensor],
        cache: tuple[Tensor, Tensor],
        positions: Tensor,
        window: int,
        scale: float,
        epsilon: float,
    ) -> Tensor:
        """Write each row's new key and value into the cache and attend from its position back; (n, heads x size).

        projected: (n, (heads + 2 shared) x size): queries, keys and values before their positions' turn.
        norms: weights (size,) of the norms of queries and keys, where a model has them.
        angles: cosine and sine, (n, size).
        cache: keys and values, (at least n, shared, capacity, size) each; row i reads its first positions[i] + 1.
        positions: (n,) int64. window: of the last positions that are read; 0: all.
        """
        keys, values = cache
        shared, capacity, size = keys.shape[1:]
        heads = projected.shape[1] // size - 2 * shared
        out = projected.new_empty(len(projected), heads * size)
        places = len(projected), heads, shared, size, capacity, window
        tensors = [out, projected, *(norms or (None, None)), *angles, keys, values, positions]
        self._run("attend", projected.dtype, *tensors, *places, scale, epsilon)
        return out

    def draw(self, logits: Tensor, uniforms: Tensor, temperature: float) -> Tensor:
        """Draw tokens (n,) from logits (n, vocabulary) by inverting their distribution at uniforms (n,) in [0, 1)."""
        tokens = torch.empty(len(logits), dtype=torch.long)
        self._run("draw", logits.dtype, tokens, logits, uniforms, *logits.shape, 1 / temperature)
        return tokens

    def product(
        self,
        states: Tensor,
        weight: "TiledWeight",
        then: str = "",
        other: Tensor | None = None,
        dtype: torch.dtype = torch.bfloat16,
    ) -> Tensor:
        """Return states (n, in) times a weight as (n, out), summed in float32. Only where `has_tiles`.

        states: bfloat16.
        weight: with its bias.
        then: what is done with the sums: silu, times or plus `other`; "": nothing.
        other: (n, out), bfloat16.
        dtype: what the result is rounded to: bfloat16 or float32.
        """
        assert states.dtype == torch.bfloat16 and states.shape[1] == weight.inputs
        assert (other is None) == (then in ("", "silu"))
        assert other is None or (other.dtype == torch.bfloat16 and other.shape == (len(states), weight.outputs))
        out = torch.empty(len(states), weight.outputs, dtype=dtype)
        operands = out, states, weight.tiles, weight.bias, other
        self._run("product", dtype, *operands, THEN[then], *states.shape, weight.outputs)
        return out

    def _run(self, name: str, dtype: torch.dtype, *arguments: Any) -> None:
        assert all(value.is_contiguous() for value in arguments if isinstance(value, Tensor))
        given = [value.data_ptr() if isinstance(value, Tensor) else value for value in arguments]
        self._functions[name, dtype](*given, torch.get_num_threads())


class TiledWeight:
    """A copy of a bfloat16 weight (out, in), and of its bias, laid out for `Kernels.product`.

    A tile holds 32 inputs of 16 outputs: (out / 16, in / 32, 16 pairs of inputs, 16 outputs, 2), with zeros behind the
    last output, so that tiles come in pairs.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None):
        self.outputs, self.inputs = weight.shape
        self.bias = None if bias is None else bias.detach().float()
        missing = -self.outputs % 32
        filled = pad(weight.detach(), (0, 0, 0, missing)) if missing else weight.detach().contiguous()
        pairs = filled.view(torch.int32).view(len(filled) // 16, 16, self.inputs // 32, 16)
        self.tiles = pairs.permute(0, 2, 3, 1).contiguous()

    @staticmethod
    def fits(weight: Tensor) -> bool:
        """Return whether a weight can be laid out so: whole tiles of inputs."""
        return weight.dtype == torch.bfloat16 and weight.shape[1] % 32 == 0


@lru_cache(maxsize=1)
def compiled() -> Kernels | None:
    """Compile the kernels, once a process, for this CPU; None where that cannot be done."""
    compiler = shutil.which("g++")
    if compiler is None or not sys.platform.startswith("linux"):
        return None
    with tempfile.TemporaryDirectory(prefix="starling-kernels-") as directory, ThreadPoolExecutor() as pool:
        paths = [Path(__file__).with_name(name) for name in SOURCES]
        kernels, tiles = pool.map(lambda path: _library(compiler, path, Path(directory)), paths)
        return None if kernels is None else Kernels(kernels, tiles)


def _library(compiler: str, source: Path, directory: Path) -> ctypes.CDLL | None:
    """Compile a source and load it; None where that cannot be done."""
    library = directory / f"{source.stem}.so"
    command = [compiler, *FLAGS, "-o", str(library), str(source)]
    try:
        subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=SECONDS)
        return ctypes.CDLL(str(library))
    except (OSError, subprocess.SubprocessError):
        return None
