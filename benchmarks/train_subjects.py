"""What `make bench-train` trains: MiniLM-L6 on reviews of natural length, MobileNetV1 on pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.places import EXAMPLES, data_path, minilm_folder, model_path, unpack
from benchmarks.streams.files import divided, link_files, read_texts, shuffled, write_texts
from benchmarks.streams.pictures import MODEL, WEIGHTS
from benchmarks.streams.plan import Cut

REVIEWS = "amazon"
DOMAIN = "art_painting"


@dataclass(frozen=True)
class Subject:
    """A model and a session's data, for `adapt` and for its peer.

    data: a folder with a train and a test part. model, weights: as --model and --weights take them.
    imports: folders that a factory comes from.
    """

    name: str
    modality: str
    data: str
    model: str
    weights: str | None = None
    imports: tuple[str, ...] = ()


Prepare = Callable[[Path, Cut], Subject]


def minilm(work: Path, cut: Cut) -> Subject:
    """MiniLM-L6 on Amazon reviews, five classes: 92 tokens on average, a quarter of them at the limit."""
    parts = {}
    for part, most in (("train", cut.train), ("test", cut.test)):
        rows = read_texts(data_path(f"text/{REVIEWS}/{part}.jsonl"))
        parts[part] = [rows[i] for i in shuffled(len(rows), cut)[:most]]
    folder = write_texts(work / REVIEWS, parts)
    return Subject("minilm", "text", str(folder), str(minilm_folder()))


def mobilenet(work: Path, cut: Cut) -> Subject:
    """MobileNetV1 on paintings of seven things, 96 x 96."""
    root = unpack(data_path("pacs-96.tar")) / "pacs"
    train, test = divided(sorted((root / DOMAIN).glob("*/*.jpg")), cut)
    folder = link_files(work / DOMAIN, {"train": train, "test": test})
    weights = str(model_path(WEIGHTS))
    return Subject("mobilenet", "image", str(folder), MODEL, weights, (str(EXAMPLES),))


SUBJECTS: Mapping[str, Prepare] = {"minilm": minilm, "mobilenet": mobilenet}
