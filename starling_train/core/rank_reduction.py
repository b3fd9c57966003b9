"""Rank reduction of a weight matrix: the best approximation of a given rank (Eckart and Young 1936).

LASER (Sharma et al., arXiv 2312.13558) replaces matrices of a trained model by such approximations; laserRMT takes as
the rank the number of singular values above the threshold of the signal-to-noise ratio (`spectrum.snr(...).rank`).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Truncation:
    """A matrix (n, m) reduced to rank k.

    left: U_k S_k, (n, k), and right: V_k^T, (k, m), both fp64; their product is the matrix. values: all singular values
    of the matrix before, fp64, descending. rank_before: how many of them are not zero but for rounding.
    """

    left: Tensor
    right: Tensor
    values: Tensor
    rank_before: int

    def matrix(self, dtype: torch.dtype) -> Tensor:
        """Return the product (n, m) in `dtype`, multiplied in fp64 and rounded once."""
        return (self.left @ self.right).to(dtype).contiguous()


def truncate(matrix: Tensor, rank: int) -> Truncation:
    """Keep the `rank` largest singular values of `matrix` (n, m), of any floating dtype, by a full SVD in fp64."""
    assert matrix.ndim == 2 and 0 < rank <= min(matrix.shape), (tuple(matrix.shape), rank)
    u, values, vt = torch.linalg.svd(matrix.double(), full_matrices=False)
    tolerance = max(matrix.shape) * torch.finfo(torch.float64).eps * values[0]
    left = (u[:, :rank] * values[:rank]).contiguous()
    return Truncation(left, vt[:rank].contiguous(), values, int((values > tolerance).sum()))


def factored_size(shape: tuple[int, ...], rank: int) -> int:
    """Count the numbers in the two factors of a matrix of that rank. shape: (n, m)."""
    return rank * sum(shape)


def saving(shape: tuple[int, ...], rank: int) -> int:
    """Count the numbers saved by keeping the factors instead of the matrix; 0 where they are not fewer."""
    return max(0, math.prod(shape) - factored_size(shape, rank))
