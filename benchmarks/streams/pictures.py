"""What the picture streams share: MobileNetV1 as the user's own module with weights beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.places import EXAMPLES, model_path
from benchmarks.streams.plan import Plan, paired

MODEL = "mobilenet_v1:mobilenet_v1"
WEIGHTS = "mobilenet_v1_1.0_224/model.safetensors"


def mobilenet_plan(
    name: str, title: str, setting: str, names: Sequence[str], folders: Sequence[Path]
) -> Plan:
    """A plan whose first session brings the network of examples/mobilenet_v1.py.

    Raises:
        UsageError: the weights are not there.
    """
    sessions, tests = paired(names, folders)
    return Plan(
        name=name,
        title=title,
        setting=setting,
        model=MODEL,
        sessions=sessions,
        tests=tests,
        first=("--weights", str(model_path(WEIGHTS))),
        keep_testing=True,
        imports=(EXAMPLES,),
    )
