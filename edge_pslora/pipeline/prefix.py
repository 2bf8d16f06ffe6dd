"""Whether a session keeps what its lower layers compute, in which form, and where."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from edge_pslora.config import AdaptConfig
from edge_pslora.config import PrefixCache as Wanted
from edge_pslora.errors import BudgetError
from edge_pslora.models.types import EncodedInputs, LoadedModel
from edge_pslora.pipeline.prefix_file import free_bytes, open_rows
from edge_pslora.tasks import TASKS
from edge_pslora.training.checkpointing import blocks
from edge_pslora.training.layout import channels_last
from edge_pslora.training.memory import Memory
from edge_pslora.training.norms import norm_parameters
from edge_pslora.training.plan import TrainingPlan, UsedPrefix
from edge_pslora.training.prefix_cache import PrefixCache, cache_bytes
from edge_pslora.training.prefix_cut import Cut, NoCut, find_cut, holds_in_half
from edge_pslora.training.targets import adapted_targets
from edge_pslora.units import format_size
from edge_pslora.workspace import strict_json

LEAST_SAMPLES = 64  # below, finding and proving the cut takes what it saves
LEFT_FREE = 128 << 20  # bytes of the disk, for checkpoints and for others


@dataclass(frozen=True)
class PlannedPrefix:
    """cut: None: every layer computes as the steps do. form: of what is kept below it, "off": nothing.
    note: what people should know, or ""."""

    cut: Cut | None = None
    form: UsedPrefix = "off"
    note: str = ""

    @property
    def lower(self) -> tuple[str, ...]:
        return () if self.cut is None else self.cut.modules


def plan_prefix(
    model: LoadedModel,
    memory: Memory,
    inputs: EncodedInputs,
    config: AdaptConfig,
    plan: TrainingPlan,
    room: int | None,
) -> PlannedPrefix:
    """Where training can start, and in which form what lies below is kept, if at all.

    What is found follows from model, data and settings. With the form `auto` the room decides whether
    rows are kept, and that changes no result: they are exact.

    Args:
        plan: as far as it is made; its `cut` says whether one may be looked for.
        room: bytes that rows may take; None: they were planned before and are kept as they were.

    Raises:
        BudgetError: a form that was asked for by name takes more.
    """
    wanted: Wanted = config.engine.prefix_cache if room is not None else plan.prefix
    few = _passes(config, memory) < 2 or len(inputs) < LEAST_SAMPLES
    asked = wanted not in ("auto", "off")
    if not plan.cut or (few and not asked) or (wanted == "off" and plan.precision == "float32"):
        note = "finding where training can start takes more memory than the budget has"
        if plan.device != "cpu":
            note = f"with --device {plan.device} every layer is computed anew"
        return PlannedPrefix(note=f"no prefix cache: {note}" if asked and not plan.cut else "")
    with channels_last(model.backbone, plan.channels_last):
        cut = _usable_cut(model, config, inputs, plan)
    if not isinstance(cut, Cut):
        # with every layer adapted there is nothing to keep, and nothing to say
        return PlannedPrefix(note=f"no prefix cache: {cut.why}" if asked else "")
    form, note = _form(wanted, cut, inputs, room)
    return PlannedPrefix(cut, form, note)


@contextmanager
def open_prefix(
    planned: PlannedPrefix, inputs: EncodedInputs, scratch: Path, run: str
) -> Iterator[PrefixCache | None]:
    """The rows, in the run's own folder, which is never published; None where none are kept.

    run: digest of data, base, settings, versions and the generation that is gone on from.
    """
    if planned.cut is None or planned.form == "off":
        yield None
        return
    with open_rows(scratch, _key(run, planned.cut, planned.form)) as rows:
        yield PrefixCache(planned.cut, inputs.lengths(), planned.form, rows)


def room_for_rows(folder: Path, left: int | None) -> int:
    """Bytes that may be written. folder: the workspace, or where it will be. left: of --disk-budget;
    None: what the disk has."""
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    free = max(0, free_bytes(folder) - LEFT_FREE)
    return free if left is None else min(free, max(0, left))


def rows_bytes(planned: PlannedPrefix, inputs: EncodedInputs) -> int:
    """What the rows will take on the disk."""
    if planned.cut is None or planned.form == "off":
        return 0
    return cache_bytes(planned.cut, inputs.lengths(), planned.form)


def _usable_cut(
    model: LoadedModel, config: AdaptConfig, inputs: EncodedInputs, plan: TrainingPlan
) -> Cut | NoCut:
    backbone = model.backbone
    cut = find_cut(backbone, _trained(model, config), inputs)
    if not isinstance(cut, Cut):
        return cut
    repeated = {id(block) for block in blocks(backbone.model)} if plan.checkpointing else set()
    above = {name for name, m in backbone.model.named_modules() if id(m) in repeated}
    if any(name.startswith(f"{block}.") for name in cut.modules for block in above):
        return NoCut("it lies inside a block whose activations are computed twice")
    if plan.precision == "bf16" and not holds_in_half(backbone, cut, inputs):
        return NoCut("steps in bf16 would not be the same with it")
    return cut


def _form(
    wanted: Wanted, cut: Cut, inputs: EncodedInputs, room: int | None
) -> tuple[UsedPrefix, str]:
    """The form, and a note where the rows do not fit."""
    if wanted == "off":
        return "off", ""
    form: UsedPrefix = "exact" if wanted == "auto" else wanted
    size = cache_bytes(cut, inputs.lengths(), form)
    if room is None or size <= room:
        return form, ""
    if wanted != "auto":
        raise BudgetError(
            f"--prefix-cache {wanted}",
            expected=f"{format_size(size)} on the disk",
            found=f"{format_size(room)} free for it",
            remedy="nothing was changed; make room, or leave --prefix-cache out",
        )
    return "off", (
        f"no prefix cache: it takes {format_size(size)}, and {format_size(room)} are free for it; "
        "the result is the same, later"
    )


def _passes(config: AdaptConfig, memory: Memory) -> int:
    """How often the session computes its samples: one pass before training and one after for a head
    that is solved or read off, none for one that is trained."""
    solved = TASKS[memory.head.task_type].has_head and memory.head.kind != "linear"
    return config.train.epochs + (2 if solved else 0)


def _trained(model: LoadedModel, config: AdaptConfig) -> list[nn.Parameter]:
    module = model.backbone.model
    parameters = dict(module.named_parameters())
    trained = {t.weight_name: parameters[t.weight_name] for t in adapted_targets(module, config)}
    if config.train.train_norms:
        trained |= norm_parameters(module)
    return list(trained.values())


def _key(run: str, cut: Cut, form: UsedPrefix) -> str:
    content = {
        "run": run,
        "boundary": [*cut.boundary.call],
        "axes": [asdict(axis) for axis in cut.boundary.axes],
        "form": form,
        "computed": str(torch.get_default_dtype()),
    }
    return hashlib.sha256(strict_json.canonical(content)).hexdigest()
