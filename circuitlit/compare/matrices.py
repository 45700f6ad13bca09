"""How one matrix changed: size, rank, sparsity, new directions; a low-rank change is never multiplied out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

TOLERANCE = 1e-5
_NEGLIGIBLE = 1e-6  # singular values below this share of the largest count as 0
_ROWS = 256


@dataclass(frozen=True)
class LowRank:
    """A matrix as a product of two thin ones, `left @ right`."""

    left: Float[Tensor, "into r"]
    right: Float[Tensor, "r out"]

    def chunks(self) -> Iterator[Float[Tensor, "_ out"]]:
        """Its rows, a few at a time."""
        for rows in self.left.split(_ROWS):
            yield rows @ self.right

    def singular_values(self) -> Float[Tensor, "_"]:
        """Its singular values, from QR of both factors: the middle is r by r."""
        left = torch.linalg.qr(self.left.double(), mode="r").R
        right = torch.linalg.qr(self.right.double().T, mode="r").R
        return torch.linalg.svdvals(left @ right.T)


Delta = Float[Tensor, "into out"] | LowRank


@dataclass(frozen=True)
class MatrixChange:
    """Figures of a change `dW = W1 - W0`.

    Attributes:
        norm: Frobenius norm of dW, in the weights' unit.
        base_norm: Frobenius norm of W0.
        spectral: largest singular value of dW.
        stable_rank: `norm^2 / spectral^2`, between 1 and the rank; 0 without a change.
        effective_rank: `exp(H(s / sum s))` of the singular values s: n for the n-dimensional identity; 0 without.
        rank: singular values above a millionth of the largest.
        energy_rank: how many of them hold 90 % of the energy.
        unchanged: share of weights that did not move at all.
        still: share of weights that moved by no more than 1e-5 or one unit in their last place, whichever is more:
            in low precision a small change is rounding.
        hoyer: `(sqrt n - |dW|_1 / |dW|_2) / (sqrt n - 1)`; 0 is an even change, 1 a single weight's.

    Source: effective rank: Roy and Vetterli, EUSIPCO 2007; Hoyer, JMLR 5 (2004).
    """

    norm: float
    base_norm: float
    spectral: float
    stable_rank: float
    effective_rank: float
    rank: int
    energy_rank: int
    unchanged: float
    still: float
    hoyer: float

    @property
    def relative(self) -> float | None:
        """`norm / base_norm`; None where something grew from nothing."""
        if self.norm == 0:
            return 0.0
        return self.norm / self.base_norm if self.base_norm else None


@dataclass(frozen=True, kw_only=True)
class Concentration:
    """How unevenly a non-negative quantity is spread over places; all None where there is nothing to spread.

    Attributes:
        gini: 0 even, towards 1 in one place.
        entropy: 1 even, 0 in one place.
        top_share: share of the largest tenth of the places, at least one.
    """

    gini: float | None
    entropy: float | None
    top_share: float | None


@torch.no_grad()
def matrix_change(before: Float[Tensor, "into out"], change: Delta) -> MatrixChange:
    """Figures of one change.

    Args:
        before: W0, in the precision it is kept in, which sets what counts as rounding.
        change: dW itself, or its factors.
    """
    zero = still = 0
    total = square = 0.0
    chunks = change.chunks() if isinstance(change, LowRank) else change.split(_ROWS)
    ulp = torch.finfo(before.dtype).eps
    for base, delta in zip(before.split(_ROWS), chunks, strict=True):
        size = delta.abs()
        zero += int((size == 0).sum())
        still += int((size <= (base.abs() * ulp).clamp(min=TOLERANCE)).sum())
        total += float(size.double().sum())
        square += float(size.double().square().sum())
    count = before.numel()
    values = singular_values(change) if square else before.new_zeros(0, dtype=torch.float64)
    energy = values.square()
    share = values / values.sum()
    entropy = float(torch.special.entr(share).sum())
    norm = math.sqrt(square)
    return MatrixChange(
        norm=norm,
        base_norm=float(torch.linalg.norm(before.double())),
        spectral=float(values.max()) if square else 0.0,
        stable_rank=float(energy.sum() / energy.max()) if square else 0.0,
        effective_rank=math.exp(entropy) if square else 0.0,
        rank=int((values > _NEGLIGIBLE * values.max()).sum()) if square else 0,
        energy_rank=int((energy.cumsum(0) < 0.9 * energy.sum()).sum()) + 1 if square else 0,
        unchanged=zero / count,
        still=still / count,
        hoyer=(math.sqrt(count) - total / norm) / (math.sqrt(count) - 1) if square and count > 1 else 0.0,
    )


def singular_values(matrix: Delta) -> Float[Tensor, "_"]:
    """Singular values in float64, largest first; of a full matrix by the eigenvalues of its smaller Gram matrix."""
    if isinstance(matrix, LowRank):
        return matrix.singular_values()
    thin = matrix.double() if matrix.shape[0] >= matrix.shape[1] else matrix.double().T
    return torch.linalg.eigvalsh(thin.T @ thin).clamp(min=0).sqrt().flip(0)


def right_singular_vectors(matrix: Float[Tensor, "into out"]) -> Float[Tensor, "rank out"]:
    """Right singular vectors in float64, largest singular value first, by the eigenvectors of the smaller Gram matrix.

    Those of singular values below a millionth of the largest are not exact.
    """
    wide = matrix.double()
    if wide.shape[0] >= wide.shape[1]:
        return torch.linalg.eigh(wide.T @ wide).eigenvectors.T.flip(0)
    return F.normalize(torch.linalg.eigh(wide @ wide.T).eigenvectors.T.flip(0) @ wide, dim=1)


@torch.no_grad()
def intruder_dimensions(
    before: Float[Tensor, "into out"], after: Float[Tensor, "into out"], top: int, thresholds: Sequence[float]
) -> list[int]:
    """How many of the `top` leading output directions of W1 resemble no singular direction of W0.

    A direction is an intruder at a threshold where its largest absolute cosine to all of W0's is below it.

    Source: Shuttleworth et al., arXiv 2410.21228, section 3. Theirs are the left singular vectors of `[out, in]`.
    """
    old, new = right_singular_vectors(before), right_singular_vectors(after)[:top]
    nearest = (new @ old.T).abs().max(-1).values
    return [int((nearest < threshold).sum()) for threshold in thresholds]


def concentration(energy: Float[Tensor, "_"]) -> Concentration:
    """How unevenly a non-negative quantity is spread over places."""
    count, total = len(energy), float(energy.sum())
    if count == 0 or total <= 0:
        return Concentration(gini=None, entropy=None, top_share=None)
    share = (energy.double() / total).sort().values
    rank = torch.arange(1, count + 1, dtype=torch.float64)
    entropy = float(torch.special.entr(share).sum())
    return Concentration(
        gini=float(((2 * rank - count - 1) * share).sum() / count),
        entropy=entropy / math.log(count) if count > 1 else 0.0,
        top_share=float(share[-max(1, round(count / 10)) :].sum()),
    )
