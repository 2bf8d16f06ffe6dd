"""Whether a session keeps what its lower layers compute, in which form, and where."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy.typing as npt
import torch
from numpy import int64
from torch import nn

from edge_pslora.config import AdaptConfig
from edge_pslora.config import PrefixCache as Wanted
from edge_pslora.models.types import EncodedInputs, LoadedModel
from edge_pslora.pipeline.prefix_file import free_bytes, open_rows
from edge_pslora.tasks import TASKS
from edge_pslora.training.memory import Memory
from edge_pslora.training.norms import norm_parameters
from edge_pslora.training.plan import UsedPrefix
from edge_pslora.training.prefix_cache import PrefixCache, cache_bytes
from edge_pslora.training.prefix_cut import Cut, find_cut
from edge_pslora.training.targets import adapted_targets
from edge_pslora.units import format_size
from edge_pslora.workspace import strict_json

LEAST_SAMPLES = 64  # below, finding and proving the cut takes what it saves
LEFT_FREE = 128 << 20  # bytes of the disk, for checkpoints and for others
_AUTOMATIC: tuple[UsedPrefix, ...] = ("exact", "bf16")  # int8 only on request: see docs


@dataclass(frozen=True)
class Prefix:
    """cache: None where nothing is kept. note: what people should know, or ""."""

    cache: PrefixCache | None = None
    note: str = ""

    @property
    def form(self) -> UsedPrefix:
        return "off" if self.cache is None else self.cache.form


@contextmanager
def session_prefix(
    model: LoadedModel,
    memory: Memory,
    inputs: EncodedInputs,
    config: AdaptConfig,
    scratch: Path,
    run: str,
    disk_bytes: int | None = None,
) -> Iterator[Prefix]:
    """What `--prefix-cache` asks for, within the budget and the free space.

    Args:
        scratch: the run's own folder, never published.
        run: digest of data, base, settings, versions and the generation that is gone on from.
        disk_bytes: the most that may be written; None: what the disk has.
    """
    wanted = config.engine.prefix_cache
    passes = _passes(config, memory)
    if wanted == "off" or passes < 2 or (wanted == "auto" and len(inputs) < LEAST_SAMPLES):
        yield Prefix()
        return
    cut = find_cut(model.backbone, _trained(model, config), inputs)
    if not isinstance(cut, Cut):
        # with every layer adapted there is nothing to keep, and nothing to say
        yield Prefix(note="" if wanted == "auto" else f"no prefix cache: {cut.why}")
        return
    room = max(0, free_bytes(scratch) - LEFT_FREE)
    room = room if disk_bytes is None else min(room, disk_bytes)
    form, note = choose_form(wanted, cut, inputs.lengths(), room)
    if form == "off":
        yield Prefix(note=note)
        return
    with open_rows(scratch, _key(run, cut, form)) as rows:
        yield Prefix(PrefixCache(cut, inputs.lengths(), form, rows), note)


def choose_form(
    wanted: Wanted, cut: Cut, lengths: npt.NDArray[int64], room: int
) -> tuple[UsedPrefix, str]:
    """The form, and a note where the rows do not fit `room` bytes."""
    if wanted == "off":
        return "off", ""
    forms = _AUTOMATIC if wanted == "auto" else (wanted,)
    sizes = {form: cache_bytes(cut, lengths, form) for form in forms}
    fitting = [form for form, size in sizes.items() if size <= room]
    if not fitting:
        least = format_size(min(sizes.values()))
        return "off", f"no prefix cache: it takes {least}, and {format_size(room)} are free for it"
    if fitting[0] != forms[0]:
        return fitting[0], (
            f"the prefix cache is kept in {fitting[0]}: {format_size(sizes[forms[0]])} for the exact one "
            f"do not fit {format_size(room)}"
        )
    return fitting[0], ""


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
