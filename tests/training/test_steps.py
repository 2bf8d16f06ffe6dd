"""The parts of a step: micro-batches, checkpointed blocks, the loss of tokens in chunks."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import ArrayInputs, TinyBackbone, blobs, tiny_model
from torch import nn

from edge_pslora.config import AdaptConfig, LoraConfig, TrainConfig
from edge_pslora.models.backbones import TransformersBackbone
from edge_pslora.tasks import TASKS
from edge_pslora.training import token_loss
from edge_pslora.training.checkpointing import blocks, checkpointed
from edge_pslora.training.half_base import FullPrecision, half_base
from edge_pslora.training.inject import injected, new_adapters
from edge_pslora.training.memory import first_memory
from edge_pslora.training.micro import add_gradients, parts
from edge_pslora.training.plan import plain_plan
from edge_pslora.training.session import SessionData, run_session
from edge_pslora.training.session_loss import session_loss
from edge_pslora.training.targets import find_targets

CONFIG = AdaptConfig(
    lora=LoraConfig(rank=2, alpha=4.0),
    train=TrainConfig(learning_rate=5e-3, epochs=2, batch_size=16, checkpoint_every=3),
)


def _session(changes, config=CONFIG, store=None, stop=lambda: "", noise=False):
    model = tiny_model()
    base = {n: p.detach().clone() for n, p in model.backbone.model.named_parameters()}
    rows, names = blobs(("a", "b", "c"))
    if noise:  # what helps on these samples does not on others
        names = np.random.default_rng(0).permutation(names)
    targets = find_targets(model.backbone.model, config.lora.target_modules)
    return run_session(
        model,
        base.__getitem__,
        first_memory(model, targets, config, "classification"),
        SessionData(ArrayInputs(rows), names),
        config,
        plan=replace(plain_plan(config), **changes),
        store=store,
        stop=stop,
    )


@pytest.mark.parametrize("size", [1, 5, 16])
def test_micro_batches_add_up_to_the_batch(size):
    """Through the cross-fitted head, with the stability loss once a step."""
    whole, split = _session({}), _session({"micro_batch": size})
    np.testing.assert_allclose(split.log.task_loss, whole.log.task_loss, rtol=2e-4)
    assert split.log.steps == whole.log.steps
    assert len(split.log.pull) == len(whole.log.pull)
    if size == 16:
        assert split.log.task_loss == whole.log.task_loss


def test_a_part_weighs_what_its_terms_do():
    batch = np.array([4, 1, 3, 0, 2])
    terms = np.array([0, 2, 0, 6, 0])
    assert [(p.tolist(), s) for p, s in parts(batch, 2, terms)] == [([4, 1], 0.25), ([3, 0], 0.75)]
    assert [s for _, s in parts(batch, 2, None)] == [0.4, 0.4, 0.2]


@dataclass(frozen=True)
class Tokens:
    """Token ids [N, T] and how many of each row count."""

    ids: np.ndarray
    counts: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, indices: np.ndarray) -> dict[str, torch.Tensor]:
        length = int(self.counts[indices].max())
        mask = np.arange(length) < self.counts[indices][:, None]
        return {
            "input_ids": torch.from_numpy(self.ids[indices][:, :length]),
            "attention_mask": torch.from_numpy(mask.astype(np.int64)),
        }

    def lengths(self) -> np.ndarray:
        return self.counts


class Language(nn.Module):
    """What of a causal language model is used here; cap: its logits lie in (-cap, cap)."""

    def __init__(self, cap: float | None = None, bias: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.GELU()) for _ in range(3))
        self.lm_head = nn.Linear(16, 50, bias=bias)
        self.cap = cap

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    def forward(self, input_ids, attention_mask, use_cache, return_dict):
        x = self.embed(input_ids)
        for layer in self.layers:
            x = x + layer(x)
        logits = self.lm_head(x)
        if self.cap is not None:
            logits = self.cap * torch.tanh(logits / self.cap)
        return SimpleNamespace(logits=logits)


def _language(cap: float | None = None, bias: bool = False, names=("0", "1", "2")):
    torch.manual_seed(0)
    backbone = TransformersBackbone(Language(cap, bias), "language").eval().requires_grad_(False)
    targets = find_targets(backbone.model, [n if "lm" in n else f"layers.{n}.0" for n in names])
    adapters = new_adapters(targets, 2, 2.0, torch.Generator().manual_seed(0))
    for adapter in adapters.values():
        adapter.B.data.normal_(0, 0.1)
    rng = np.random.default_rng(0)
    return backbone, adapters, Tokens(rng.integers(0, 50, (9, 12)), rng.integers(1, 13, 9))


def _loss_and_gradients(backbone, adapters, tokens, large, micro=9):
    for adapter in adapters.values():
        adapter.A.grad = adapter.B.grad = None
    task, plan = TASKS["language"], replace(plain_plan(CONFIG), micro_batch=9)
    widths = []
    with session_loss(task, backbone, adapters, tokens, CONFIG, plan, large) as loss:

        def compute(inputs, batch):
            outputs = backbone(**inputs)
            widths.append(outputs.shape[-1])
            return loss(outputs, torch.zeros(0), inputs, 1.0)

        terms = task.terms(tokens.lengths())
        total = add_gradients(compute, tokens, np.arange(9), micro, terms)
    grads = [g for a in adapters.values() for g in (a.A.grad.clone(), a.B.grad.clone())]
    return float(total), grads, set(widths)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("half", [False, True])
def test_the_loss_of_tokens_in_chunks_is_the_loss_of_all(bias, half, monkeypatch):
    monkeypatch.setattr(token_loss, "CHUNK", 4 * 50 * 7)  # seven positions at a time
    backbone, adapters, tokens = _language(bias=bias)
    in_place = half_base(backbone, adapters) if half else injected(backbone.model, adapters)
    with in_place:
        loss, expected, width = _loss_and_gradients(backbone, adapters, tokens, 10**9)
        assert width == {50}
        chunked, found, width = _loss_and_gradients(backbone, adapters, tokens, 1)
        assert width == {16}  # no logits anywhere
    assert chunked == pytest.approx(loss, rel=2e-3 if half else 1e-6)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(
            ours, theirs, rtol=0.1 if half else 1e-4, atol=3e-3 if half else 1e-7
        )
    assert "forward" not in backbone.model.lm_head.__dict__


def test_micro_batches_of_texts_are_weighted_by_their_tokens():
    backbone, adapters, tokens = _language()
    with injected(backbone.model, adapters):
        loss, expected, _ = _loss_and_gradients(backbone, adapters, tokens, 10**9)
        split, found, _ = _loss_and_gradients(backbone, adapters, tokens, 10**9, micro=2)
    assert split == pytest.approx(loss, rel=1e-6)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("cap", "names"), [(5.0, ("0",)), (None, ("0", "lm_head"))], ids=["capped", "adapted"]
)
def test_logits_that_are_more_than_the_layers_output_are_made(cap, names):
    backbone, adapters, tokens = _language(cap, names=names)
    with injected(backbone.model, adapters):
        _, _, width = _loss_and_gradients(backbone, adapters, tokens, 1)
    assert width == {50}


class Attention(nn.Module):
    """Of rows [N, 64] to each other, in two heads."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = x.view(1, len(x), 2, 32).transpose(1, 2)
        mixed = nn.functional.scaled_dot_product_attention(heads, heads, heads)
        return mixed.transpose(1, 2).reshape(len(x), 64)


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(1000, 16)
        self.small = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 64), Attention(), nn.GELU(), nn.Linear(64, 16))
            for _ in range(4)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


@pytest.mark.parametrize("half", [False, True])
def test_checkpointing_changes_no_bit_and_keeps_less(half):
    torch.manual_seed(0)
    backbone = TinyBackbone(Blocks()).eval().requires_grad_(False)
    assert blocks(backbone.model) == list(backbone.model.layers)
    names = [f"layers.{n}.{part}" for n in range(4) for part in (0, 3)]
    targets = find_targets(backbone.model, names)
    adapters = new_adapters(targets, 2, 2.0, torch.Generator().manual_seed(0))
    for adapter in adapters.values():
        adapter.B.data.normal_(0, 0.1)
    x = {"x": torch.randn(32, 16)}
    own = {p.data_ptr() for a in adapters.values() for p in (a.A, a.B)}

    def step():
        for adapter in adapters.values():
            adapter.A.grad = adapter.B.grad = None
        kept: dict[int, int] = {}

        def pack(t):
            if t.data_ptr() not in own:
                kept[t.data_ptr()] = t.nbytes
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            loss = backbone(**x).square().sum()
        loss.backward()
        return (
            loss,
            [g for a in adapters.values() for g in (a.A.grad, a.B.grad)],
            sum(kept.values()),
        )

    in_place = half_base(backbone, adapters) if half else injected(backbone.model, adapters)
    with in_place:
        loss, gradients, size = step()
        with checkpointed(backbone.model, FullPrecision if half else nullcontext) as found:
            assert found
            again, same, less = step()
    assert torch.equal(loss, again)
    assert all(torch.equal(a, b) for a, b in zip(gradients, same, strict=True))
    assert less < size / 2
    assert not any("forward" in m.__dict__ for m in backbone.modules())


def test_a_model_without_blocks_has_none_and_it_is_said():
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
            self.c = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))

    assert blocks(Flat()) == []
    with checkpointed(Flat()) as found:
        assert not found


def test_checkpointed_sessions_end_in_the_same_bytes():
    plain, again = _session({}), _session({"checkpointing": True})
    assert again.log.task_loss == plain.log.task_loss
    assert again.log.notes == plain.log.notes


class Store:
    def __init__(self) -> None:
        self.saved = None

    def load(self):
        return self.saved

    def save(self, arrays, meta) -> None:
        self.saved = ({n: a.copy() for n, a in arrays.items()}, dict(meta))


@pytest.mark.parametrize("early", [False, True])
def test_a_resumed_session_ends_in_the_same_bytes_with_all_of_it_on(early):
    train = replace(
        CONFIG.train,
        epochs=12 if early else 6,
        early_stop=early,
        label_smoothing=0.1,
        balanced_sampling=True,
        learning_rate=0.05 if early else 5e-3,
    )
    config = replace(CONFIG, train=train)
    changes = {"precision": "bf16", "micro_batch": 5, "checkpointing": True}
    whole = _session(changes, config, noise=early)
    if early:
        assert any("early stopping" in note for note in whole.log.notes)
    store, steps = Store(), iter(range(1000))
    _session(changes, config, store, lambda: "killed" if next(steps) >= 13 else "", noise=early)
    resumed = _session(changes, config, store, noise=early)
    assert resumed.log.resumed_at > 0
    assert resumed.log.task_loss == whole.log.task_loss
    assert resumed.log.notes == whole.log.notes
    for name, adapter in whole.adapters.items():
        assert torch.equal(resumed.adapters[name].A, adapter.A)
        assert torch.equal(resumed.adapters[name].B, adapter.B)
