"""What a kind of task is to training and judging: its labels, loss, scores and figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[Any]
Inputs = Mapping[str, torch.Tensor]
Loss = Callable[[torch.Tensor, torch.Tensor, Inputs, float], torch.Tensor]
Measures = dict[str, Array]  # name -> one row for each sample; "score" is always there


@dataclass(frozen=True)
class Task:
    """The functions in which kinds of task differ. N samples, C labels, targets as in data.types.

    metric: name of the headline figure, a fraction where 1 is perfect.
    own_labels: labels that are there from the start (the one column of regression).
    has_head: whether the model gets a head of ours on its features [N, d]; without one it already
        yields the outputs.
    threshold: of a ridge head's score; the logit is 0 there.

    labels_in: targets -> names of the labels that occur in them, unordered.
    encode: targets, labels -> what `loss` and `columns` take, first axis N.
    columns: encoded, C -> float [N, C], what a ridge head is fitted to.
    loss: outputs, encoded, model inputs, target scale -> scalar, a mean over the samples' terms.
    smoothed: a share in [0, 1) -> the loss against targets that give so much to all labels alike; None:
        a kind of task without.
    terms: lengths of the samples' sequences, int64 [N] -> how many terms each brings to the loss' mean.
    measure: outputs, targets, model inputs, labels that compete, target scale -> measures. "score"
        is float64 [N], higher is better; "sure", where there is one, the probability of what is right;
        what else is in it, `figures` and `per_label` know.
    figures: measures, targets, target scale -> name -> value; "accuracy" is the headline figure.
    per_label: measures, targets, labels -> label -> its share of the headline figure.
    constant: training targets, held targets, target scale -> scores [N] of the best constant answer,
        or None where there is none.
    answers: measures, targets -> what was answered and what is right, float64 [N, K] each with 0 and 1
        for labels: core.agreement tells from them whether targets follow from inputs. None: not told.
    predict: outputs -> decisions [N, ...]; two models agree on a sample when all of its are equal.
        None: the outputs themselves.
    margin: outputs, decisions of another model -> the least change of every output that would lead to
        those, [N, ...]; see exporters.parity.
    """

    metric: str
    labels_in: Callable[[Array], set[str]]
    encode: Callable[[Array, tuple[str, ...]], torch.Tensor]
    columns: Callable[[torch.Tensor, int], torch.Tensor]
    loss: Loss
    measure: Callable[[Array, Array, Mapping[str, Array], Sequence[str], float], Measures]
    figures: Callable[[Measures, Array, float], dict[str, float]]
    per_label: Callable[[Measures, Array, Sequence[str]], dict[str, float]]
    constant: Callable[[Array, Array, float], Array | None]
    smoothed: Callable[[float], Loss] | None = None
    terms: Callable[[Array], Array] = np.ones_like
    answers: Callable[[Measures, Array], tuple[Array, Array]] | None = None
    predict: Callable[[Array], Array] | None = None
    margin: Callable[[Array, Array], Array] | None = None
    own_labels: tuple[str, ...] = ()
    has_head: bool = True
    threshold: float = 0.0


def half_the_gap(outputs: Array, chosen: Array, axis: int) -> Array:
    """The margin where the largest along `axis` decides: it loses when both move by half of the gap."""
    other = np.take_along_axis(outputs, np.expand_dims(chosen, axis), axis).squeeze(axis)
    return np.asarray((outputs.max(axis=axis) - other) / 2)


def mean(values: Array) -> float:
    """The mean, 0 for no values."""
    return float(values.mean()) if len(values) else 0.0
