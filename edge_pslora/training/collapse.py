"""Whether the stability loss kept a session from learning its task."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median

LEAST_STEPS = 10
LEAST_LOSS = 1e-3  # below it there was nothing left to learn
LEAST_FALL = 0.05  # of the task loss, from the first tenth of the steps to the last
STRONG_PULL = 0.5


def collapse_note(task_loss: Sequence[float], pull: Sequence[float], weight: float) -> str:
    """A sentence if the task loss hardly fell while the penalty pulled as hard as the task, or "".

    The penalty's value does not show it: it pins the update to zero and is then zero itself.

    Args:
        task_loss: of each step.
        pull: |gradient of the penalty| / |gradient of task and penalty together|, where computed.
        weight: the weight of the stability loss.
    """
    if len(task_loss) < LEAST_STEPS or not pull:
        return ""
    tenth = len(task_loss) // 10
    first, last = fmean(task_loss[:tenth]), fmean(task_loss[-tenth:])
    if first < LEAST_LOSS or last < (1 - LEAST_FALL) * first or median(pull) < STRONG_PULL:
        return ""
    return (
        f"the task loss hardly moved ({first:.3g} to {last:.3g}) and the stability loss pulled as hard "
        f"as the task: if the task is not learned, lower --stability-weight (it was {weight:g})"
    )
