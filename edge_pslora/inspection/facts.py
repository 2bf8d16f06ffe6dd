"""What inspection finds out: plain facts, with what is only an estimate said so."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class PartFacts:
    """rows: that can be used. classes: label -> its rows, the most frequent first; {} without labels."""

    rows: int
    classes: dict[str, int]


@dataclass(frozen=True)
class MediaSample:
    """A random choice of files, decoded in full. sizes: (width, height) of the smallest and largest."""

    checked: int
    of: int
    bad: int
    first: tuple[tuple[str, str], ...] = ()  # file, reason
    sizes: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class DataFacts:
    """One DATA argument.

    parts: train, valid, test. label, text: column, key or what stands for it; None: there is none.
    features: names of the columns; shape: of one sample. missing: column -> cells without a number;
    constant: columns with one value, in the training part. target_range: least, mean and greatest
    value of a quantity. complete: False where only the first `bytes_read` of `bytes` were read, and
    all counts are of those. sample: of pictures, whose headers alone were read otherwise. notes: the
    readers' own sentences.
    """

    source: str
    format: str
    modality: str
    task_type: str
    parts: dict[str, PartFacts]
    label: str | None
    text: str | None
    features: tuple[str, ...]
    shape: tuple[int, ...]
    missing: dict[str, int]
    constant: tuple[str, ...]
    target_range: tuple[float, float, float] | None
    rejected: int
    rejected_first: tuple[tuple[str, str], ...]
    bytes: int
    bytes_read: int
    sample: MediaSample | None
    fits: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        return self.bytes_read == self.bytes

    def to_dict(self) -> dict[str, Any]:
        return {"what": "data", **asdict(self), "complete": self.complete}


@dataclass(frozen=True)
class LayerFacts:
    """A weight that an adapter can update: D is [out, in]. weight_name: as the file has it."""

    name: str
    kind: str
    weight_name: str
    shape: tuple[int, int]


@dataclass(frozen=True)
class ModelFacts:
    """One --model argument.

    kind: huggingface, factory, auto or weights. modality: what it takes, None where only a trial
    would show it. labels: of the classifier that it brings. targets: what --target chooses;
    targets_certain: False where names and shapes in a file do not decide it. input_limit: tokens of
    a text, or pixels of a picture's side.
    """

    source: str
    kind: str
    family: str
    architecture: str
    modality: str | None
    task: str
    labels: tuple[str, ...]
    head: str
    targets: tuple[LayerFacts, ...]
    targets_certain: bool
    rank: int
    parameters: int
    dtype: str
    bytes: int
    input_limit: int | None
    notes: tuple[str, ...] = ()

    @property
    def trained(self) -> int:
        """Numbers in all adapters: A [r, in] and B [out, r] each."""
        return sum(self.rank * sum(layer.shape) for layer in self.targets)

    def to_dict(self) -> dict[str, Any]:
        return {"what": "model", **asdict(self), "trained": self.trained}
