"""From lines to figures, tables, Markdown and page: what is shown follows from the lines."""

from __future__ import annotations

import gzip
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from scipy import stats

from benchmarks import report
from edge_pslora.charts import extra
from edge_pslora.compare.markdown import results_markdown
from edge_pslora.compare.overall import losses, overall, targets
from edge_pslora.compare.page import comparison_page
from edge_pslora.compare.statistics import holm
from tests.compare import comparison_kit as kit
from tests.pages.pages_kit import Tables


@pytest.fixture(scope="module")
def streams():
    return kit.streams()


def of(method: str, stream: int = 0) -> list[float]:
    name, setting, tasks = kit.STREAMS[stream]
    return [kit.result(name, setting, tasks, method, seed).average for seed in range(5)]


def test_means_intervals_and_verdicts_are_scipys(streams):
    ours = of("pslora")
    found = streams[0].method("pslora").average
    low, high = stats.t.interval(0.95, 4, sum(ours) / 5, stats.sem(ours))
    assert (found.mean, found.low, found.high) == pytest.approx((sum(ours) / 5, low, high))
    others = [key for key in kit.NAMES if key not in ("pslora", "joint")]
    ps = holm([float(stats.ttest_rel(ours, of(key)).pvalue) for key in others])
    for key, p in zip(others, ps, strict=True):
        judgement = streams[0].method(key).judgement
        assert judgement.p == pytest.approx(p)
        above = sum(ours) > sum(of(key))
        assert judgement.verdict == ("not shown" if p >= 0.05 else "better" if above else "worse")
    assert streams[0].method("sequential").judgement.verdict == "better"
    assert streams[0].method("ewc").judgement.verdict == "worse"
    # an upper bound is no rival, and the default is none of its own
    assert streams[0].method("joint").judgement is None
    assert streams[0].method("pslora").judgement is None


def test_the_gap_lies_between_sequential_and_joint(streams):
    share = (sum(of("pslora")) - sum(of("sequential"))) / (sum(of("joint")) - sum(of("sequential")))
    assert streams[0].method("pslora").gap.mean == pytest.approx(share)
    assert streams[0].method("sequential").gap.mean == 0
    assert streams[0].method("joint").gap.mean == pytest.approx(1)


def test_the_bound_is_the_best_joint_training_and_more_than_all_counts_as_all():
    lines = kit.lines()
    low = [replace(r, average=r.average - 0.25) if r.joint else r for r in lines]
    found = kit.streams(low)[0]
    assert found.bound == "joint"
    assert found.method("sequential").gap is None  # no gap at all: joint is below
    part = [replace(r, average=r.average - 0.1) if r.joint else r for r in lines]
    assert kit.streams(part)[0].method("ewc").gap.mean > 1
    assert targets(kit.streams(part))[0].measured <= 1.0
    better = [replace(r, method="joint+pslora") for r in lines if r.joint]
    found = kit.streams([*low, *better])[0]
    assert found.bound == "joint+pslora"
    assert found.method("ewc").gap.mean == pytest.approx(kit.streams()[0].method("ewc").gap.mean)
    assert kit.streams([r for r in lines if not r.joint])[0].method("ewc").gap is None


def test_a_run_is_paired_with_the_same_run_and_the_newest_line_counts():
    lines = kit.lines()
    again = [r for r in lines if r.method == "frozen" and r.stream == "pacs"]
    newer = [replace(r, average=0.5, date="2026-11-27T00:00:00+00:00") for r in again[:3]]
    shuffled = [*newer, *reversed(lines)]
    found = next(s for s in kit.streams(shuffled) if s.stream == "pacs")
    frozen = found.method("frozen")
    values = [0.5] * 3 + [r.average for r in again[3:]]
    assert frozen.average.mean == pytest.approx(sum(values) / 5)
    expected = sum(a - b for a, b in zip(of("pslora"), values, strict=True)) / 5
    assert frozen.judgement.paired.difference.mean == pytest.approx(expected)
    assert found.notes == ("3 older lines of the same runs are left out",)
    # over the runs that both have
    fewer = [r for r in lines if not (r.method == "pslora" and r.seed > 2)]
    found = kit.streams(fewer)[0]
    assert found.method("frozen").judgement.paired.difference.seeds == 3
    assert found.method("frozen").average.seeds == 5
    assert found.notes == ("not of all 5 runs: PS-LoRA (default)",)


def test_of_several_configurations_the_newest_counts():
    lines = kit.lines()
    late = "2026-11-27T00:00:00+00:00"
    other = [replace(r, digest="e", date=late, average=0.3) for r in lines if r.method == "ewc"]
    found = kit.streams([*other, *lines])[0]
    assert [m.key for m in found.methods] == ["ewc"]
    assert found.methods[0].average.mean == pytest.approx(0.3)
    assert found.notes == ("40 lines of another configuration than the newest are left out",)
    assert len(kit.streams([*lines, *other])[0].methods) == 1


def test_tasks_whose_order_the_seed_draws_are_numbered():
    lines = [r if r.seed == 0 else replace(r, tasks=r.tasks[::-1]) for r in kit.lines()]
    assert kit.streams(lines)[1].tasks == ("task 1", "task 2", "task 3")
    # other orders have other names anyway
    lines = [r if r.seed < 2 else replace(r, tasks=r.tasks[::-1], order=1) for r in kit.lines()]
    found = kit.streams(lines)[1]
    assert found.tasks == tuple(f"task <i>{j}</i>" for j in range(3))
    assert found.orders == (0, 1)


def test_one_seed_gives_means_and_no_verdict():
    found = kit.streams(kit.lines(seeds=1))
    assert all(m.average.low is None for s in found for m in s.methods)
    verdicts = {m.judgement.verdict for s in found for m in s.methods if m.judgement}
    assert verdicts == {"not shown"}
    assert all(not loss.shown for loss in losses(found))
    gap, beaten, _lost, frozen, _reservoir = targets(found)
    assert gap.measured is not None
    assert [(t.measured, t.met, t.streams) for t in (beaten, frozen)] == [(None, None, 0)] * 2


def test_the_targets_are_counted_as_they_are_worded(streams):
    gap, beaten, lost, frozen, reservoir = targets(streams)
    shares = [s.method("pslora").gap.mean for s in streams]
    assert gap.measured == pytest.approx(sum(shares) / 2)
    assert gap.met == (gap.measured >= 0.9)
    # EWC is better by construction; DER++ too, but it stores samples
    assert (beaten.measured, beaten.met, beaten.streams) == (2.0, False, 2)
    assert lost.measured == pytest.approx(sum(s.learning_lost.mean for s in streams) / 2)
    assert frozen.measured == 1.0
    assert (reservoir.measured, reservoir.met) == (None, None)
    assert targets(streams, other_tasks=["pacs"])[0].measured == pytest.approx(shares[1])


def test_how_many_methods_there_are_does_not_say_what_the_adapter_earns():
    default = {(r.stream, r.seed): r for r in kit.lines() if r.method == "pslora"}
    earned = (0.02, 0.03, 0.01, 0.02, 0.005)  # p = 0.018 by itself
    lines = [*default.values()]
    lines += [
        replace(r, method="frozen", average=r.average - earned[r.seed]) for r in default.values()
    ]
    (*_, frozen, _reservoir) = targets(kit.streams(lines))
    assert (frozen.measured, frozen.streams) == (1.0, 2)
    apart = (0.01, -0.01, 0.02, -0.02, 0.001)
    for k in range(20):
        lines += [
            replace(r, method=f"m{k}", average=r.average + apart[r.seed]) for r in default.values()
        ]
    crowded = kit.streams(lines)
    assert {s.method("frozen").judgement.verdict for s in crowded} == {"not shown"}
    assert targets(crowded)[3] == frozen


def test_where_it_loses_names_all_with_a_higher_mean_the_shown_ones_first(streams):
    found = losses(streams)
    expected = {
        (s.name, m.name)
        for s in streams
        for m in s.methods
        if m.key not in ("pslora", "joint") and m.average.mean > s.method("pslora").average.mean
    }
    assert {(loss.stream, loss.method) for loss in found} == expected
    assert [loss.shown for loss in found] == sorted((x.shown for x in found), reverse=True)
    assert {loss.group for loss in found} >= {"stored samples", "other"}
    assert all(loss.alone <= loss.p for loss in found)
    assert any(loss.alone < loss.p for loss in found)


def test_the_page_has_the_figures_of_the_lines(streams):
    page = Tables(comparison_page(*kit.page_arguments()))
    for i, s in enumerate(streams):
        place = next(name for name in page.figures if name.startswith(f"stream-{i + 1}-"))
        key = place.removesuffix("-averages")
        rows = {row[0]: row[1:] for row in page.figures[f"{key}-averages"][1:]}
        for m in s.methods:
            assert rows[m.name] == [m.average.mean, m.average.low, m.average.high]
        plane = page.figures[f"{key}-plane"][1:]
        drawn = [m for m in s.methods if m.learning is not None]
        assert [row[1] for row in plane] == [m.learning.mean for m in drawn]
        assert [row[4] for row in plane] == [m.backward.mean for m in drawn]
        matrix = s.method("pslora").matrix
        lost = page.figures[f"{key}-forgetting"][1:]
        assert lost[0][1:] == [row[0] - matrix[0][0] for row in matrix]
        verdicts = {row[0]: row for row in page.figures[f"{key}-verdicts"]}
        assert verdicts["EWC <script>alert(1)</script>"][4] == "worse"
        assert verdicts["sequential LoRA"][1] == s.method("sequential").average.mean
        costs = {row[0]: row[1:] for row in page.figures[f"{key}-costs"]}
        assert costs["DER++"] == [3.0, float(10**9 + 4), 1000.0, 5000.0, "der"]
    means = {row[0]: row[2] for row in page.figures["all"][1:]}
    assert means == {f.name: f.average for f in overall(streams)}
    assert [row[0] for row in page.figures["ablation"][1:]] == [
        "default, loss only",
        "PS-LoRA as published, linear head",
    ]
    assert "script" not in page.tags
    assert "<script>alert" in page.text


def test_the_markdown_has_the_same_tables_and_its_commands(streams):
    def command(stream):
        return f"make bench-suite BENCH='--streams {stream.stream}'"

    text = results_markdown(streams, kit.SOURCES, ["pslora-loss"], command)
    assert "## Where it loses" in text
    assert "## Ablation of every part" in text
    assert "    make bench-suite BENCH='--streams pacs'" in text
    assert "EWC \\<script>alert(1)\\</script>" in text
    mean = streams[0].method("pslora").average.mean
    assert f"| PS-LoRA (default) | {100 * mean:.1f} % (" in text
    every = text.split("## Every method on every stream\n\n")[1].split("\n\n")[0].splitlines()
    own = [s.method("pslora").average for s in streams]
    cells = [f"{100 * a.mean:.1f} ±{100 * (a.high - a.mean):.1f}" for a in own]
    assert f"| PS-LoRA (default) | {' | '.join(cells)} |" in every
    assert every[0].count("|") == len(streams) + 2
    tables = [block for block in text.split("\n\n") if block.startswith("|")]
    for table in tables:
        widths = {line.count("|") - line.count("\\|") for line in table.splitlines()}
        assert len(widths) == 1


def test_bench_report_writes_both_from_the_suites_lines(tmp_path: Path, monkeypatch, capsys):
    path = tmp_path / "suite.jsonl"
    path.write_text("".join(json.dumps(asdict(r)) + "\n" for r in kit.lines(2)), encoding="utf-8")
    monkeypatch.setattr(extra, "find_spec", lambda name: None)  # tables are enough here
    assert report.main(["--lines", str(path)], out=tmp_path / "out") == 0
    said = capsys.readouterr()
    assert "suite.jsonl, 32 results, 2 streams and settings" in said.out
    assert "tables only" in said.err
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<svg" not in page
    assert "sequential LoRA" in page
    tables = (tmp_path / "out" / "results.md").read_text(encoding="utf-8")
    assert tables.startswith("32 results")
    # the same lines in two files, as several days leave them, one of them packed
    halves = path.read_bytes().splitlines(keepends=True)
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl.gz"
    one.write_bytes(b"".join(halves[:16]))
    two.write_bytes(gzip.compress(b"".join(halves[16:])))
    assert report.main(["--lines", str(one), str(two)], out=tmp_path / "again") == 0
    assert (tmp_path / "again" / "results.md").read_text(encoding="utf-8") == tables
    assert "one.jsonl, " in capsys.readouterr().out
    assert report.main(["--lines", str(tmp_path / "none.jsonl")], out=tmp_path) == 4
    assert "no such file" in capsys.readouterr().err
