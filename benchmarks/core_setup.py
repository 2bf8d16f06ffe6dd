"""What the parts of `make bench-core` share: a model, its targets, a history and fixed batches."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.core_updates import folded_history
from benchmarks.table import Row
from edge_pslora.core.history import LayerHistory
from edge_pslora.data.types import Samples
from edge_pslora.errors import UsageError
from edge_pslora.models.encode_text import EncodedTexts
from edge_pslora.models.load import import_base, load_model
from edge_pslora.models.options import ModelOptions
from edge_pslora.models.types import LoadedModel
from edge_pslora.training.targets import Target, find_targets

SEED = 0
LABELS = 4


@dataclass(frozen=True)
class Sizes:
    """How much is measured. pairs: repetitions of the steps; repeats: of everything else.

    batch x length tokens in a step; steps in a block that is timed as one. sessions: the T at which
    the history is looked at, ascending. buffers: bytes of one operand of a merge. file_bytes: of
    the synthetic model.
    """

    pairs: int = 20
    repeats: int = 7
    threads: int = 2
    rank: int = 8
    batch: int = 32
    length: int = 40
    budget_bytes: int = 1_000_000
    past_sessions: int = 15
    sessions: tuple[int, ...] = (1, 15, 100, 1000)
    buffers: tuple[int, ...] = (4 << 20, 64 << 20)
    file_bytes: int = 600_000_000


@dataclass(frozen=True)
class Part:
    """Rows of the table, and sentences that stand under it."""

    rows: list[Row]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Setup:
    """A loaded model with all of its linear layers as targets, as a session would see it.

    name: for people; folder: what it was loaded from, with model.safetensors.
    tokens: inputs of one block, all of one length; labels int64 [N]. history: after some sessions.
    """

    name: str
    folder: Path
    model: LoadedModel
    targets: tuple[Target, ...]
    history: Mapping[str, LayerHistory]
    tokens: EncodedTexts
    labels: torch.Tensor
    head: nn.Linear

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        return {target.name: target.shape for target in self.targets}

    @property
    def elements(self) -> int:
        return sum(out * size for out, size in self.shapes.values())

    def base(self, target: Target) -> torch.Tensor:
        """W0 of a target, in the weight's own shape."""
        return self.model.backbone.model.get_parameter(target.weight_name).detach()


def open_setup(name: str, folder: Path, base_dir: Path, sizes: Sizes, steps: int) -> Setup:
    """Imports the Hugging Face folder as a first session would, and loads it.

    base_dir: an empty folder for the frozen copy. steps: batches in a block.

    Raises:
        UsageError: the model has no linear layer, or does not take texts of this length.
    """
    texts = ["an old sentence", "a new one"]
    samples = Samples("text", "classification", texts, np.array(["old", "new"]))
    source = import_base(str(folder), None, samples, ModelOptions(), base_dir)
    model = load_model(source, base_dir)
    names = [n for n, m in model.backbone.model.named_modules() if isinstance(m, nn.Linear)]
    if not names:
        raise UsageError(
            str(folder), expected="linear layers", found="none", remedy="give a text encoder"
        )
    targets = find_targets(model.backbone.model, names)
    generator = torch.Generator().manual_seed(SEED)
    count = sizes.batch * steps
    head = nn.Linear(model.feature_size, LABELS).requires_grad_(False)
    with torch.no_grad():
        head.weight.normal_(0, model.feature_size**-0.5, generator=generator)
        head.bias.zero_()
    shapes = {target.name: target.shape for target in targets}
    return Setup(
        name,
        folder,
        model,
        targets,
        folded_history(shapes, sizes.rank, sizes.past_sessions, sizes.budget_bytes, SEED),
        _random_tokens(model, samples, count, sizes.length),
        torch.randint(0, LABELS, (count,), generator=generator),
        head,
    )


def _random_tokens(model: LoadedModel, samples: Samples, count: int, length: int) -> EncodedTexts:
    """The encoder's own form of texts, with random ids: every text has the same length."""
    encoded = model.encoder.encode(samples)
    assert isinstance(encoded, EncodedTexts)
    embeddings = model.backbone.model.get_input_embeddings()  # type: ignore[operator]
    ids = np.random.default_rng(SEED).integers(
        4, embeddings.num_embeddings, count * length, dtype=np.int32
    )
    offsets = np.arange(count + 1, dtype=np.int64) * length
    types = None if encoded.types is None else np.zeros_like(ids)
    return EncodedTexts(ids, offsets, encoded.pad_id, types)


@contextmanager
def threads_set_to(threads: int) -> Iterator[None]:
    """Within the block torch uses exactly this many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def timed(into: list[float]) -> Iterator[None]:
    """Appends the seconds that the block took."""
    start = time.perf_counter()
    yield
    into.append(time.perf_counter() - start)
