"""Text order 1 with MiniLM-L6: dbpedia, amazon, agnews, yelp; the labels of all tasks so far compete."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.places import data_path, minilm_folder
from benchmarks.streams.files import read_texts, shuffled, write_texts
from benchmarks.streams.main import main
from benchmarks.streams.plan import Cut, Plan, StreamScript, paired

TASKS = ("dbpedia", "amazon", "agnews", "yelp")


def prepare(work: Path, cut: Cut) -> Plan:
    """One folder a task, cut from its own train and test files."""
    names, folders = TASKS[: cut.sessions], []
    for name in names:
        parts = {}
        for part, most in (("train", cut.train), ("test", cut.test)):
            rows = read_texts(data_path(f"text/{name}/{part}.jsonl"))
            parts[part] = [rows[i] for i in shuffled(len(rows), cut)[:most]]
        folders.append(write_texts(work / name, parts))
    sessions, tests = paired(names, folders)
    return Plan(
        name="text",
        title="text order 1 with MiniLM-L6",
        setting="class-incremental",
        model=str(minilm_folder()),
        sessions=sessions,
        tests=tests,
        train=("--max-length", "64", "--epochs", "2"),
    )


STREAM = StreamScript("text", Cut(1000, 500), prepare)

if __name__ == "__main__":
    sys.exit(main(STREAM))
