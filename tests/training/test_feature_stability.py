"""What holds features in place from the second session on, and which labels a sample is trained against."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import ArrayInputs, blobs, tiny_model

from edge_pslora.config import AdaptConfig, HeadConfig, LoraConfig, StabilityConfig, TrainConfig
from edge_pslora.errors import UsageError
from edge_pslora.training.competing import choose_competing
from edge_pslora.training.features import extract_features
from edge_pslora.training.memory import Memory, first_memory
from edge_pslora.training.session import SessionData, SessionResult, run_session
from edge_pslora.training.targets import find_targets

FAST = AdaptConfig(
    lora=LoraConfig(rank=2, alpha=4.0),
    train=TrainConfig(learning_rate=5e-3, epochs=8, batch_size=16),
)
FREE = StabilityConfig(weight=0.0, features=0.0)


def _learned(
    config: AdaptConfig, *groups: tuple[str, ...], blur: float = 1.0
) -> Iterator[tuple[SessionResult, torch.Tensor]]:
    """Each session's result, and the features of one fixed set of inputs after it."""
    model = tiny_model()
    base = {n: p.detach().clone() for n, p in model.backbone.model.named_parameters()}
    targets = find_targets(model.backbone.model, config.lora.target_modules)
    memory: Memory = first_memory(model, targets, config, "classification")
    seen = ArrayInputs(blobs(("a", "b", "c", "d", "e"), seed=99)[0])
    for seed, labels in enumerate(groups):
        rows, names = blobs(labels, seed=seed)
        if seed:
            rows = rows + (blur - 1.0) * np.random.default_rng(seed).normal(size=rows.shape)
            rows = rows.astype(np.float32)
        data = SessionData(ArrayInputs(rows), names)
        result = run_session(model, base.__getitem__, memory, data, config)
        memory = result.memory
        yield result, extract_features(model.backbone, seen, 32)


def _moved(config: AdaptConfig, *groups: tuple[str, ...]) -> float:
    first, second = (features for _, features in _learned(config, *groups))
    return float((second - first).square().mean())


def _adapters(result: SessionResult) -> torch.Tensor:
    return torch.cat([a.delta().flatten() for a in result.adapters.values()])


def test_the_more_it_weighs_the_less_the_features_move():
    moved = [
        _moved(replace(FAST, stability=replace(FREE, features=weight)), ("a", "b"), ("a", "b"))
        for weight in (0.0, 1.0, 30.0)
    ]
    assert moved[0] > 10 * moved[1]
    assert moved[1] > moved[2] > 0


def test_a_first_session_is_free():
    free, held = (
        next(_learned(replace(FAST, stability=replace(FREE, features=weight)), ("a", "b")))[0]
        for weight in (0.0, 30.0)
    )
    assert torch.equal(_adapters(free), _adapters(held))


def test_new_labels_alone_move_the_features_less_than_new_against_old():
    among = [
        _moved(
            replace(FAST, stability=FREE, head=HeadConfig(compete=compete)), ("a", "b"), ("c", "d")
        )
        for compete in ("session", "all")
    ]
    assert among[0] < among[1]


@pytest.mark.parametrize(("blur", "like"), [(1.0, "session"), (40.0, "all")])
def test_by_default_all_compete_where_a_sessions_labels_are_not_told_apart(blur, like):
    """Blobs of c and d that overlap, or not: the adapters are those of one of the two, to the bit."""
    found = {}
    for compete in ("auto", "session", "all"):
        config = replace(FAST, head=HeadConfig(compete=compete))
        found[compete] = list(_learned(config, ("a", "b"), ("c", "d"), blur=blur))[1][0]
    other = "session" if like == "all" else "all"
    assert torch.equal(_adapters(found["auto"]), _adapters(found[like]))
    assert not torch.equal(_adapters(found["auto"]), _adapters(found[other]))
    said = [note for note in found["auto"].log.notes if "all labels compete" in note]
    assert len(said) == (like == "all")
    assert not [note for note in found[like].log.notes if "all labels compete" in note]


@pytest.mark.parametrize(("wrong", "labels"), [(1, (1, 2)), (2, None)])
def test_more_than_a_quarter_mistaken_among_the_sessions_own_is_too_much(wrong, labels):
    """Four samples of labels 1 and 2 of three; that label 0 is ahead of both says nothing here."""
    wanted = torch.tensor([1, 2, 1, 2])
    logits = torch.full((4, 3), -1.0)
    logits[:, 0] = 9.0
    for row, label in enumerate(wanted.tolist()):
        logits[row, 3 - label if row < wrong else label] = 1.0
    found = choose_competing("auto", 3, wanted, logits, wanted)
    assert (None if found.labels is None else tuple(found.labels.tolist())) == labels
    assert ("50%" in found.note) == (labels is None)


def test_where_all_labels_come_again_nothing_changes():
    session, everything = (
        [
            _adapters(result)
            for result, _ in _learned(
                replace(FAST, head=HeadConfig(compete=compete)), ("a", "b"), ("b", "a")
            )
        ]
        for compete in ("session", "all")
    )
    assert all(torch.equal(a, b) for a, b in zip(session, everything, strict=True))


def test_a_session_of_one_label_is_trained_against_the_old_ones():
    results = [result for result, _ in _learned(FAST, ("a", "b"), ("c",))]
    assert _adapters(results[1]).any()
    assert results[1].memory.head.weight[2].any()


def test_smoothed_labels_share_among_those_that_compete():
    config = replace(FAST, train=replace(FAST.train, label_smoothing=0.1))
    results = [result for result, _ in _learned(config, ("a", "b"), ("c", "d"))]
    assert np.isfinite(results[1].log.task_loss).all()
    assert _adapters(results[1]).isfinite().all()


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(UsageError, match="--stability-features"):
        StabilityConfig(features=-1.0)
    with pytest.raises(UsageError, match="--compete"):
        HeadConfig(compete="none")  # type: ignore[arg-type]
