"""`make bench-train` on a tiny encoder: each way of training once, and what its figures are made of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks import train, train_child, train_runs
from benchmarks.streams.plan import Cut
from benchmarks.train_child import FIRST_STEP, PEFT, PEFT_BF16, SESSION, WHOLE, Job, Taken
from benchmarks.train_rows import budget_rows, score_rows, start_rows, time_rows
from benchmarks.train_runs import HALF, OURS, PLAIN, TIMED
from benchmarks.train_subjects import Subject
from edge_pslora.errors import BudgetError, EdgePsloraError
from tests.pipeline import hf_kit
from tests.pipeline import pipeline_kit as kit


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """A BERT of two layers and 60 texts on two topics; the words of one topic are all it takes."""
    work = tmp_path_factory.mktemp("bench-train")
    labels = list(kit.TOPICS)[:2]
    rows = [
        {"text": f"{i} " + " ".join(kit.TOPICS[label].split()[i % 3 : i % 3 + 4]), "label": label}
        for i in range(30)
        for label in labels
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    for part in ("train", "test"):
        (work / f"{part}.jsonl").write_text(lines, encoding="utf-8")
    folder = hf_kit.bert_folder(work / "model", layers=1)
    return Subject("tiny", "text", str(work), str(folder))


def job(subject: Subject, way: str, workspace: Path, **parts: object) -> Job:
    settings = {"epochs": 2, "seed": 0, **parts}
    return Job(way, asdict(subject), str(workspace), 1, train=settings)


def test_a_run_ends_where_it_is_told_to_and_says_what_it_took(
    tiny: Subject, tmp_path: Path
) -> None:
    first = train_child.run_ours(job(tiny, FIRST_STEP, tmp_path / "a"))
    assert (first.first_step_wall or 0) > 0
    assert (first.first_step_cpu or 0) > 0
    assert first.wall is None
    whole = train_child.run_ours(job(tiny, SESSION, tmp_path / "b"))
    assert whole.samples == 48  # a fifth of so few is held out
    assert whole.layers == 4  # query, value and the two of the feed-forward part
    assert (whole.session_cpu or 0) >= (whole.cpu or 0) > 0
    assert whole.peak is not None
    assert not (tmp_path / "b" / "generations").exists() or not any(
        (tmp_path / "b" / "generations").iterdir()
    )


def test_the_peer_adapts_the_same_layers_and_learns(tiny: Subject, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    from benchmarks import train_peft

    settings = train_peft.Settings(epochs=30, learning_rate=1e-2)
    peer = train_peft.open_peer(asdict(tiny), settings)
    assert (peer.samples, peer.layers) == (60, 4)
    train_peft.train(peer, settings, bf16=True)
    import torch

    every = torch.arange(peer.samples)
    right = (peer.head(peer.features(every)).argmax(1) == peer.labels).float().mean()
    assert right > 0.9
    taken = train_child.run_peer(job(tiny, PEFT, tmp_path))
    assert (taken.cpu or 0) > 0
    assert taken.samples == 60


def test_a_budget_that_is_refused_is_an_answer_and_not_a_failure(
    tiny: Subject, tmp_path: Path
) -> None:
    given = Job(WHOLE, asdict(tiny), str(tmp_path / "w"), 1, budget={"ram_bytes": 1 << 20})
    taken = train_child.run_ours(given)
    assert taken.exit_code == BudgetError.exit_code
    assert "--ram-budget" in taken.message


def taken(wall: float, **more: object) -> Taken:
    figures = {"samples": 10, "layers": 4, "wall": wall, "cpu": wall, "peak": int(100 * wall)}
    figures |= {"session_wall": 2 * wall, "session_cpu": 2 * wall, "peak_rss": int(100 * wall)}
    return Taken(**{**figures, **more})  # type: ignore[arg-type]


def test_rows_hold_each_round_against_the_peer_of_the_same_round() -> None:
    runs = {
        OURS: [taken(1.0), taken(2.0)],
        PLAIN: [taken(2.0), taken(4.0)],
        HALF: [taken(0.5), taken(1.0)],
        PEFT: [taken(4.0), taken(8.0)],
        PEFT_BF16: [taken(2.0), taken(4.0)],
    }
    rows, notes = time_rows("tiny", runs)
    by = {row.figure: row for row in rows}
    assert by["tiny: time per sample, session / PEFT float32"].measured == 0.25
    assert by["tiny: time per sample, session / PEFT float32"].met
    assert by["tiny: time per sample, training / PEFT bf16"].measured == 0.25
    assert by["tiny: peak memory of a session / PEFT float32"].measured == 0.25
    # the same number of layers as at full depth: no top half was measured
    assert not any("top half" in figure for figure in by)
    assert len(notes) == 1
    runs[HALF] = [taken(0.5, layers=2), taken(1.0, layers=2)]
    rows, notes = time_rows("tiny", runs)
    half = next(row for row in rows if "top half" in row.figure and "time" in row.figure)
    assert (half.measured, half.target, notes) == (0.125, 0.25, [])


def test_rows_of_scores_budgets_and_the_start() -> None:
    runs = {OURS: [taken(1.0, score=0.80)], PLAIN: [taken(1.0, score=0.81)]}
    rows = score_rows("tiny", runs, [200.0])
    assert rows[0].measured == pytest.approx(1.0)
    assert rows[0].met is False
    assert rows[2].measured == 0.5
    found = [taken(1.0), taken(3.0), taken(2.0, exit_code=6)]
    exceeded, refused = budget_rows("tiny", [100, 200, 300], found)
    assert (exceeded.measured, exceeded.met, refused.measured) == (1, False, 1)
    start = start_rows("tiny", {OURS: [taken(1.0, first_step_wall=2.5, first_step_cpu=4.0)]})
    assert start[0].met
    assert start[1].measured == 4.0


def test_a_run_of_the_command_keeps_to_the_contract(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, dict[str, object]]] = []

    def child(job: Job) -> Taken:
        seen.append((job.way, dict(job.budget)))
        limit = job.budget.get("ram_bytes")
        if limit == 1 << 20:  # every session takes more, and says how much
            return taken(1.0, exit_code=6, message="do so; allow at least 90 bytes")
        return taken(1.0, score=0.8, first_step_wall=1.0, first_step_cpu=1.0)

    def subject(work: Path, cut: Cut) -> Subject:
        return Subject("tiny", "text", str(work), "model")

    monkeypatch.setattr(train_runs, "_child", child)
    arguments = ["--rounds", "2", "--seeds", "1"]
    assert train.main(arguments, subjects={"tiny": subject}, out=tmp_path) == 0
    content = json.loads((tmp_path / "train.json").read_text())
    assert {"machine", "date", "commit", "command", "runs", "rows"} <= set(content)
    assert len(content["runs"]["tiny"]["budgets"]) == train.BUDGETS
    ways = [way for way, _ in seen]
    assert (ways.count(PEFT), ways.count(FIRST_STEP)) == (2, 2)
    assert ways[2:7] != ways[7:12]  # an order drawn anew in every round
    assert sorted(ways[2:7]) == sorted(v.way for v in TIMED)
    budgets = [row["budget"] for row in content["runs"]["tiny"]["budgets"]]
    assert (budgets[0], budgets[-1]) == (90, 110)  # what would do, and ample: 1.1 of what was taken
    exceeded = next(row for row in content["rows"] if row["figure"].endswith("exceeded"))
    assert exceeded["measured"] == sum(budget < 100 for budget in budgets)
    assert "tiny: 10 budgets, exceeded" in capsys.readouterr().out


def test_a_refusal_that_does_not_say_what_would_do_ends_the_benchmark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = Subject("tiny", "text", str(tmp_path), "model")
    bench = train_runs.Bench(subject, tmp_path, 1, 1)
    for message in ("it cannot be met", "allow at least 7 bytes"):  # the second: for ever
        monkeypatch.setattr(
            train_runs, "_child", lambda job, m=message: Taken(exit_code=6, message=m)
        )
        with pytest.raises(EdgePsloraError, match="the least that would do"):
            train_runs.least_budget(bench, lambda line: None)


def test_an_error_inside_a_run_ends_the_benchmark(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def child(job: Job) -> Taken:
        return Taken(exit_code=4, message="model: expected this; found that; do so")

    subjects = {"tiny": lambda work, cut: Subject("tiny", "text", str(work), "model")}
    monkeypatch.setattr(train_runs, "_child", child)
    assert train.main(["--only", "time"], subjects=subjects, out=tmp_path) == 1
    assert "expected this" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_ten_budgets_from_the_least_to_ample() -> None:
    budgets: Sequence[int] = train.between(400, 1000)
    assert (len(budgets), budgets[0], budgets[-1]) == (10, 400, 1000)
    assert list(budgets) == sorted(budgets)
