"""InfLoRA: A spans what the new data need and earlier inputs do not have (arXiv 2404.00228).

A layer's gradient lies in the span of its inputs H [in, n]. With P the projection onto what the memory
leaves free, the rows of A are the r largest left singular vectors of P H (Eq. 8 and 9), and only B is
trained, so that the outputs for earlier inputs stay. After the session the memory takes up the largest
directions of the inputs, until it holds a share epsilon of their energy. DualGPM keeps either the
memory's basis or that of its complement, whichever has fewer columns: at most d / 2 columns of d
numbers.

H is not kept: P H H^T P, of the covariance, has the same directions. Chosen: rows of A have norm 1 /
sqrt(3), as the authors' code has it, which is also a fresh LoRA's; energies are squared singular values
of H, as the paper writes (the code squares those of H H^T); epsilon is constant, since a device does
not know how many sessions there will be (theirs rises with t / T), and 0.8 by validation
(benchmarks/LOG.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from edge_pslora.compare.layer_inputs import input_covariances
from edge_pslora.compare.rule import Round, Step, summed

ROW_NORM = 3**-0.5
_RESERVE = 1e-9  # of the mean variance: orders free directions in which the data have nothing


@dataclass(frozen=True)
class GradientMemory:
    """basis [d, k], orthonormal, float32: of the memory, or if `free` of what it leaves free."""

    basis: torch.Tensor
    free: bool

    @property
    def nbytes(self) -> int:
        return self.basis.numel() * self.basis.element_size()

    @property
    def size(self) -> int:
        """Dimensions that are taken."""
        return self.basis.shape[0] - self.basis.shape[1] if self.free else self.basis.shape[1]


def empty_memory(size: int) -> GradientMemory:
    return GradientMemory(torch.zeros(size, 0), free=False)


def free_part(memory: GradientMemory, covariance: torch.Tensor) -> torch.Tensor:
    """P C P [d, d], float64, for a covariance H H^T / n [d, d]."""
    U, C = memory.basis.double(), covariance.double()
    if memory.free:
        inner = U.T @ C @ U
        return U @ inner @ U.T
    left = C - U @ (U.T @ C)
    return left - (left @ U) @ U.T


def design(memory: GradientMemory, covariance: torch.Tensor, rank: int) -> torch.Tensor:
    """A [rank, d], float32: the largest free directions of the inputs, rows of norm ROW_NORM.

    Rows beyond the free dimensions are zero.
    """
    size = covariance.shape[0]
    reserve = _RESERVE * max(float(covariance.diagonal().mean()), torch.finfo(torch.float64).tiny)
    identity = torch.eye(size, dtype=torch.float64)
    spread = free_part(memory, covariance.double() + reserve * identity)
    vectors = torch.linalg.eigh(spread).eigenvectors
    rows = vectors.flip(1)[:, :rank].T * ROW_NORM
    present = min(rank, size - memory.size)
    rows[present:] = 0.0
    return torch.nn.functional.pad(rows, (0, 0, 0, rank - len(rows))).float()


def grown(memory: GradientMemory, covariance: torch.Tensor, epsilon: float) -> GradientMemory:
    """The memory with the inputs' largest directions, until it holds the share epsilon of their
    energy."""
    total = float(covariance.double().trace())
    if total <= 0:
        return memory
    values, vectors = torch.linalg.eigh(free_part(memory, covariance))
    values, vectors = values.flip(0).clamp_min(0.0), vectors.flip(1)
    outside = float(values.sum())
    taken = 0
    while taken < covariance.shape[0] - memory.size and outside > (1 - epsilon) * total:
        outside -= float(values[taken])
        taken += 1
    new = vectors[:, :taken]
    if memory.free:
        kept = memory.basis.double()
        U, _, _ = torch.linalg.svd(kept - new @ (new.T @ kept), full_matrices=False)
        return GradientMemory(U[:, : memory.basis.shape[1] - taken].float(), free=True)
    return _smaller_form(torch.cat([memory.basis.double(), new], dim=1))


def _smaller_form(basis: torch.Tensor) -> GradientMemory:
    size, taken = basis.shape
    if taken <= size / 2:
        return GradientMemory(basis.float(), free=False)
    U, _, _ = torch.linalg.svd(basis, full_matrices=True)
    return GradientMemory(U[:, taken:].float(), free=True)


class InfLora:
    """The rule. epsilon: share of the inputs' energy that the memory holds."""

    def __init__(self, epsilon: float = 0.8) -> None:
        self.epsilon = epsilon
        self.memory: dict[str, GradientMemory] = {}

    def begin(self, round: Round) -> None:
        covariances = _covariances(round)
        if not self.memory:
            self.memory = {name: empty_memory(len(C)) for name, C in covariances.items()}
        for name, adapter in round.adapters.items():
            with torch.no_grad():
                adapter.A.copy_(design(self.memory[name], covariances[name], adapter.A.shape[0]))
            adapter.A.requires_grad_(False)

    def loss(self, round: Round, step: Step) -> torch.Tensor | None:
        return None

    def after_step(self, round: Round) -> None:
        pass

    def end(self, round: Round) -> dict[str, torch.Tensor]:
        for name, covariance in _covariances(round).items():
            self.memory[name] = grown(self.memory[name], covariance, self.epsilon)
        return summed(round)

    @property
    def kept_bytes(self) -> int:
        return sum(memory.nbytes for memory in self.memory.values())


def _covariances(round: Round) -> dict[str, torch.Tensor]:
    targets = [adapter.target for adapter in round.adapters.values()]
    size = round.config.train.batch_size
    return input_covariances(round.model.backbone, targets, round.data.inputs, size)
