"""InfLoRA: DualGPM against a plain memory of everything, and what the rule lets a session change."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edge_pslora.compare.layer_inputs import input_covariances
from edge_pslora.compare.rules.inflora import (
    ROW_NORM,
    GradientMemory,
    InfLora,
    design,
    empty_memory,
    free_part,
    grown,
)
from edge_pslora.errors import UsageError
from edge_pslora.training.targets import Target, find_targets
from tests.compare.rules_kit import task, watched
from tests.tiny import ArrayInputs, TinyBackbone

SIZE = 8


def _inputs(seed: int, rank: int = 3, count: int = 40) -> torch.Tensor:
    """H [SIZE, count], float64: a few strong directions and a little of all others."""
    generator = torch.Generator().manual_seed(seed)
    strong = torch.randn(SIZE, rank, generator=generator, dtype=torch.float64)
    codes = torch.randn(rank, count, generator=generator, dtype=torch.float64)
    noise = torch.randn(SIZE, count, generator=generator, dtype=torch.float64)
    return strong @ codes + 0.05 * noise


def _gpm(basis: torch.Tensor, H: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Gradient projection memory as the paper has it, on the inputs themselves: one matrix, by SVD."""
    total = float(H.square().sum())
    rest = H - basis @ (basis.T @ H)
    U, sigma, _ = torch.linalg.svd(rest, full_matrices=False)
    held, taken = total - float(rest.square().sum()), 0
    while held < epsilon * total and taken < SIZE - basis.shape[1]:
        held += float(sigma[taken] ** 2)
        taken += 1
    return torch.cat([basis, U[:, :taken]], dim=1)


def _projector(memory: GradientMemory) -> torch.Tensor:
    """Onto what the memory holds."""
    own = memory.basis.double() @ memory.basis.double().T
    return torch.eye(SIZE, dtype=torch.float64) - own if memory.free else own


@pytest.mark.parametrize("epsilon", [0.7, 0.95, 0.999])
def test_the_smaller_of_two_bases_is_the_plain_memory(epsilon):
    memory, plain = empty_memory(SIZE), torch.zeros(SIZE, 0, dtype=torch.float64)
    forms = set()
    for seed in range(4):
        H = _inputs(seed)
        memory = grown(memory, H @ H.T / H.shape[1], epsilon)
        plain = _gpm(plain, H, epsilon)
        forms.add(memory.free)
        torch.testing.assert_close(_projector(memory), plain @ plain.T, rtol=0, atol=1e-5)
        assert memory.size == plain.shape[1]
        assert memory.basis.shape[1] <= SIZE / 2
        assert memory.nbytes == 4 * SIZE * memory.basis.shape[1]
    assert forms == ({False, True} if epsilon > 0.7 else forms)


def test_rows_are_the_largest_singular_vectors_of_the_projected_inputs():
    """Eq. 8 and 9, literally: H - M M^T H, its left singular vectors."""
    first, new = _inputs(0), _inputs(1)
    memory = grown(empty_memory(SIZE), first @ first.T / 40, 0.95)
    basis = memory.basis.double()
    assert not memory.free
    U = torch.linalg.svd(new - basis @ (basis.T @ new)).U[:, :2]
    A = design(memory, new @ new.T / 40, 2)
    cosines = (A.double() / ROW_NORM @ U).abs()
    torch.testing.assert_close(cosines, torch.eye(2, dtype=torch.float64), rtol=0, atol=1e-4)
    torch.testing.assert_close(
        (A.double() @ basis), torch.zeros(2, basis.shape[1]).double(), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(A.norm(dim=1), torch.full((2,), ROW_NORM), rtol=1e-5, atol=0)


def test_rows_beyond_the_free_dimensions_are_zero():
    full = GradientMemory(torch.eye(SIZE)[:, :1], free=True)  # one dimension is left
    H = _inputs(0)
    A = design(full, H @ H.T, 3)
    torch.testing.assert_close(A[0].abs(), torch.eye(SIZE)[0] * ROW_NORM, atol=1e-6, rtol=0)
    assert not bool(A[1:].any())
    still = design(
        empty_memory(2), torch.zeros(2, 2), 3
    )  # rank above the layer's, no inputs at all
    assert still.shape == (3, 2)
    assert torch.isfinite(still).all()


def test_free_part_is_the_projected_covariance_in_both_forms():
    H = _inputs(2)
    C = H @ H.T
    U = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(0))).Q
    taken, left = U[:, :3], U[:, 3:]
    P = left.double() @ left.double().T
    for memory in (GradientMemory(taken, free=False), GradientMemory(left, free=True)):
        torch.testing.assert_close(free_part(memory, C), P @ C @ P, rtol=0, atol=1e-4)


def test_only_b_is_trained_and_old_inputs_are_answered_as_before():
    seen, _ = watched(InfLora(epsilon=0.999), tasks=2)
    first, second = seen.rounds
    sizes = sum(a.B.numel() for a in first.adapters.values())
    assert not any(a.A.requires_grad for a in second.adapters.values())
    covariances = input_covariances(
        first.model.backbone, [a.target for a in first.adapters.values()], task(0).inputs, 16
    )
    lowest = next(iter(covariances))  # its inputs are the data themselves: no session moves them
    D, C = second.adapters[lowest].delta(), covariances[lowest]
    change = float((D @ C @ D.T).trace() / C.trace())
    size = float(D.square().sum())
    assert size > 0
    assert change < 0.01 * size / D.shape[1]  # a random direction would change it by size / in
    assert seen.kept[-1] > 0
    assert sizes > 0


def test_inputs_of_every_kind_of_layer_are_those_of_its_product():
    """W H + b is what the layer computes, whatever the kernel, stride and padding."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2, padding=1, dilation=1), nn.Flatten(), nn.Linear(3 * 3 * 3, 4)
    )
    x = torch.randn(6, 2, 6, 6)
    targets = find_targets(module, ["0", "2"])
    found = input_covariances(TinyBackbone(module), targets, ArrayInputs(x.numpy()), 4)
    columns = F.unfold(x, 3, padding=1, stride=2)  # [N, in, P]
    H = columns.permute(1, 0, 2).reshape(18, -1)
    torch.testing.assert_close(found["0"], H @ H.T / H.shape[1])
    product = torch.einsum("oi,nip->nop", module[0].weight.reshape(3, 18), columns)
    torch.testing.assert_close(
        (product + module[0].bias[:, None]).reshape(6, 3, 3, 3), module[0](x), atol=1e-5, rtol=1e-5
    )
    flat = module[1](module[0](x)).detach().T
    torch.testing.assert_close(found["2"], flat @ flat.T / 6)

    line = nn.Conv1d(2, 3, 3, padding=2, stride=2, dilation=2)
    sound = torch.randn(5, 2, 9)
    model = nn.Sequential(line)
    targets = find_targets(model, ["0"])
    found = input_covariances(TinyBackbone(model), targets, ArrayInputs(sound.numpy()), 5)
    patches = F.unfold(sound[:, :, None], (1, 3), (1, 2), (0, 2), (1, 2))
    patches = patches.permute(1, 0, 2).reshape(6, -1)
    torch.testing.assert_close(found["0"], patches @ patches.T / patches.shape[1])


def test_a_layer_whose_inputs_cannot_be_seen_is_refused():
    module = nn.Sequential(nn.Embedding(4, 3))
    target = Target("0", "embedding", "0.weight", (3, 4))
    with pytest.raises(UsageError, match=r"kind embedding.*leave this method out"):
        input_covariances(TinyBackbone(module), [target], ArrayInputs(torch.zeros(2, 1).numpy()), 2)


def test_batches_of_other_lengths_give_outputs_of_other_lengths():
    """As a language model's, whose outputs are a row for each token."""

    class Ragged(ArrayInputs):
        def lengths(self) -> np.ndarray:
            return np.array([5, 2, 5, 2])

        def batch(self, indices: np.ndarray) -> dict[str, torch.Tensor]:
            longest = int(self.lengths()[indices].max())
            return {"x": torch.from_numpy(self.rows[indices, :longest])}

    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4))
    x = torch.randn(4, 5, 3)
    targets = find_targets(module, ["0"])
    found = input_covariances(TinyBackbone(module), targets, Ragged(x.numpy()), 2)
    seen = torch.cat([x[::2].reshape(-1, 3), x[1::2, :2].reshape(-1, 3)])
    torch.testing.assert_close(found["0"], seen.T @ seen / len(seen))
