"""A small causal language model: made on news, then taught reviews, then encyclopaedia abstracts."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.places import data_path
from benchmarks.streams.files import read_texts, shuffled, write_texts
from benchmarks.streams.main import main
from benchmarks.streams.plan import Cut, Plan, StreamScript, Test, paired
from benchmarks.streams.tiny_language import make_model

BASE = "agnews"
DOMAINS = ("yelp", "dbpedia")
STEPS = 600  # of the base: about a minute on two cores


def prepare(work: Path, cut: Cut) -> Plan:
    """One folder a domain, of texts without labels; and the news that the base was made on."""
    names, folders = DOMAINS[: cut.sessions], []
    for name in (*names, BASE):
        parts = {}
        for part, most in (("train", cut.train), ("test", cut.test)):
            rows = read_texts(data_path(f"text/{name}/{part}.jsonl"))
            texts = [{"text": rows[i]["text"]} for i in shuffled(len(rows), cut)[:most]]
            parts[part] = texts
        folders.append(write_texts(work / name, parts))
    *folders, news = folders
    texts = [str(row["text"]) for row in read_texts(data_path(f"text/{BASE}/train.jsonl"))]
    steps = STEPS if cut.train is None or cut.train >= 500 else 20
    base = make_model(work / "base", texts, steps)
    sessions, tests = paired(names, folders)
    return Plan(
        name="language",
        title="a language model of two layers, news, then two other domains",
        setting="domain-incremental, language",
        model=str(base),
        sessions=sessions,
        tests=(Test(f"{BASE} (the base's own)", news, 0), *tests),
        train=("--task-type", "language", "--max-length", "64"),
        keep_testing=True,
    )


STREAM = StreamScript("language", Cut(1500, 300), prepare)

if __name__ == "__main__":
    sys.exit(main(STREAM))
