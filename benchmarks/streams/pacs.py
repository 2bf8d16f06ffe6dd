"""PACS by domain with MobileNetV1: photos, art, cartoons, sketches of the same seven things."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.places import data_path, unpack
from benchmarks.streams.files import divided, link_files
from benchmarks.streams.main import main
from benchmarks.streams.pictures import mobilenet_plan
from benchmarks.streams.plan import Cut, Plan, StreamScript

DOMAINS = ("photo", "art_painting", "cartoon", "sketch")


def prepare(work: Path, cut: Cut) -> Plan:
    """One folder a domain, drawn at random from all of its pictures."""
    root = unpack(data_path("pacs-96.tar")) / "pacs"
    names, folders = DOMAINS[: cut.sessions], []
    for name in names:
        train, test = divided(sorted((root / name).glob("*/*.jpg")), cut)
        folders.append(link_files(work / name, {"train": train, "test": test}))
    title = "PACS by domain with MobileNetV1"
    return mobilenet_plan("pacs", title, "domain-incremental", names, folders)


STREAM = StreamScript("pacs", Cut(700, 300), prepare)

if __name__ == "__main__":
    sys.exit(main(STREAM))
