"""What each kind of task says of outputs and targets, against the definitions written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edge_pslora.config import TASK_TYPES
from edge_pslora.data.types import join_labels, split_labels
from edge_pslora.tasks import TASKS
from edge_pslora.tasks.regression import ValueMoments

LABELS = ("a", "b", "c")
SETS = st.lists(st.sets(st.sampled_from((*LABELS, "new"))), min_size=1, max_size=8)


def test_every_task_type_has_its_task():
    assert set(TASKS) == set(TASK_TYPES)


@given(st.sets(st.text(alphabet="ab é", min_size=1)))
def test_a_set_of_labels_survives_the_way_through_a_string(labels):
    assert set(split_labels(join_labels(labels))) == labels
    assert join_labels(sorted(labels, reverse=True)) == join_labels(labels)


def _softmax(right: float, *others: float) -> float:
    return math.exp(right) / sum(math.exp(logit) for logit in (right, *others))


def test_classification_counts_right_answers_among_competing_labels():
    task = TASKS["classification"]
    logits = np.array([[2.0, 1.0, 3.0], [0.0, 1.0, 9.0]])
    targets = np.array(["a", "b"])
    everything = task.measure(logits, targets, {}, LABELS, 1.0)
    assert everything["score"].tolist() == [0.0, 0.0]
    assert everything["sure"] == pytest.approx([_softmax(2, 1, 3), _softmax(1, 0, 9)])
    known = task.measure(logits, targets, {}, LABELS[:2], 1.0)
    assert known["sure"] == pytest.approx([_softmax(2, 1), _softmax(1, 0)])
    assert task.measure(logits, np.array(["x", "b"]), {}, LABELS, 1.0)["sure"][0] == 0
    assert task.figures(known, targets, 1.0) == {"accuracy": 1.0}
    assert task.per_label(everything, np.array(["c", "b"]), LABELS) == {"c": 0.0, "b": 0.0}
    assert task.encode(np.array(["b", "x"]), LABELS).tolist() == [1, -1]
    assert task.constant(np.array(["a", "b", "b"]), np.array(["b", "a"]), 1.0).tolist() == [1, 0]


def test_regression_is_r2_and_rmse():
    task = TASKS["regression"]
    targets = np.array([1.0, 2.0, 3.0], np.float32)
    values = np.array([[1.0], [2.0], [4.0]])
    for scale in (1.0, 7.0):
        figures = task.figures(task.measure(values, targets, {}, ("value",), scale), targets, scale)
        assert figures["accuracy"] == pytest.approx(1 - 1 / 2)
        assert figures["rmse"] == pytest.approx(math.sqrt(1 / 3))
    constant = task.constant(targets, targets, 1.0)
    assert task.figures({"score": constant}, targets, 1.0)["accuracy"] == pytest.approx(0.0)


def _f1(given_labels: set[str], right: set[str]) -> float:
    total = len(given_labels) + len(right)
    return 1.0 if total == 0 else 2 * len(given_labels & right) / total


@given(SETS, st.integers(0, 2**32 - 1))
def test_multilabel_scores_are_f1_of_each_sample(sets, seed):
    task = TASKS["multilabel"]
    logits = np.random.default_rng(seed).normal(size=(len(sets), len(LABELS)))
    targets = np.array([join_labels(labels) for labels in sets])
    measures = task.measure(logits, targets, {}, LABELS, 1.0)
    answers = [{LABELS[i] for i in range(3) if row[i] > 0} for row in logits]
    expected = [_f1(answer, labels) for answer, labels in zip(answers, sets, strict=True)]
    np.testing.assert_allclose(measures["score"], expected)
    figures = task.figures(measures, targets, 1.0)
    exact = [answer == labels for answer, labels in zip(answers, sets, strict=True)]
    assert figures["exact_match"] == pytest.approx(np.mean(exact))
    for label, f1 in task.per_label(measures, targets, LABELS).items():
        given_to = {i for i, answer in enumerate(answers) if label in answer}
        belongs_to = {i for i, labels in enumerate(sets) if label in labels}
        assert f1 == pytest.approx(_f1(given_to, belongs_to))


def test_multilabel_trains_on_zeros_and_ones():
    task = TASKS["multilabel"]
    targets = np.array([join_labels(["c", "a"]), ""])
    assert task.labels_in(targets) == {"a", "c"}
    encoded = task.encode(targets, LABELS)
    assert encoded.tolist() == [[1, 0, 1], [0, 0, 0]]
    right = task.loss(100 * (encoded - 0.5), encoded, {}, 1.0)
    wrong = task.loss(-100 * (encoded - 0.5), encoded, {}, 1.0)
    assert float(right) < 1e-6 < 1 < float(wrong)
    held = np.array([join_labels(["a", "c"]), join_labels(["b"])])
    assert task.constant(targets[[0, 0, 1]], held, 1.0).tolist() == [1.0, 0.0]


def test_language_predicts_the_next_token_and_ignores_padding():
    task = TASKS["language"]
    rng = np.random.default_rng(0)
    ids = np.array([[1, 2, 3, 4], [4, 3, 0, 0]])
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0]])
    logits = rng.normal(size=(2, 4, 6)).astype(np.float32)
    logits[1, 0, 3] = 50.0
    inputs = {"input_ids": ids, "attention_mask": mask}
    measures = task.measure(logits, np.array(["", ""]), inputs, (), 1.0)
    surprise, right = [], []
    for row, length in ((0, 4), (1, 2)):
        steps = [
            (logits[row, t].astype(np.float64), int(ids[row, t + 1])) for t in range(length - 1)
        ]
        surprise += [math.log(np.exp(out).sum()) - out[token] for out, token in steps]
        right.append(np.mean([out.argmax() == token for out, token in steps]))
    assert measures["tokens"].tolist() == [3, 1]
    np.testing.assert_allclose(measures["score"], right)
    figures = task.figures(measures, np.array(["", ""]), 1.0)
    assert figures["perplexity"] == pytest.approx(math.exp(np.mean(surprise)))
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    loss = task.loss(torch.from_numpy(logits), torch.zeros(2), tensors, 1.0)
    assert float(loss) == pytest.approx(np.mean(surprise), rel=1e-5)


def test_a_text_of_one_token_predicts_nothing():
    task = TASKS["language"]
    inputs = {"input_ids": np.array([[3]]), "attention_mask": np.array([[1]])}
    measures = task.measure(np.zeros((1, 1, 4)), np.array([""]), inputs, (), 1.0)
    figures = task.figures(measures, np.array([""]), 1.0)
    assert figures == {"accuracy": 0.0, "perplexity": 1.0}


@given(st.lists(st.lists(st.floats(-1e3, 1e3), max_size=6), max_size=5))
def test_moments_of_parts_are_those_of_the_whole(parts):
    found = ValueMoments()
    for part in parts:
        found = found.with_values(np.array(part, np.float64))
    whole = np.array([value for part in parts for value in part], np.float64)
    assert found.count == len(whole)
    if len(whole):
        assert found.mean == pytest.approx(whole.mean(), abs=1e-9)
        assert found.squares == pytest.approx(((whole - whole.mean()) ** 2).sum(), abs=1e-6)
    assert found.scale > 0
