"""Every method over a short stream; results as lines; what the product's variants differ in."""

from __future__ import annotations

import gzip
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from edge_pslora.compare.methods import METHODS, choose
from edge_pslora.compare.product import ProductLearner
from edge_pslora.compare.recommend import recommendation
from edge_pslora.compare.results import Result, append, read
from edge_pslora.compare.run import figures, run
from edge_pslora.compare.stream import Stream
from edge_pslora.compare.table import format_results
from edge_pslora.config import paper_preset
from edge_pslora.core.metrics import average_accuracy, forgetting
from edge_pslora.errors import DataError, UsageError
from tests.compare.compare_kit import CONFIG, domains, groups
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def stream() -> Stream:
    return groups(also=("class-incremental",))


@pytest.fixture(scope="module")
def results(stream: Stream) -> dict[str, tuple[Result, ...]]:
    return {key: run(method, stream, CONFIG, 3) for key, method in METHODS.items()}


@pytest.mark.parametrize("key", list(METHODS))
def test_every_method_answers_in_both_settings(
    key: str, results: dict[str, tuple[Result, ...]], stream: Stream
) -> None:
    method, (known, unknown) = METHODS[key], results[key]
    assert [r.setting for r in (known, unknown)] == ["task-incremental", "class-incremental"]
    for result in (known, unknown):
        assert len(result.matrix) == (1 if method.joint else 2)
        assert all(len(row) == 2 and 0 <= min(row) <= max(row) <= 1 for row in result.matrix)
        assert (result.method, result.seed, result.stream) == (key, 3, stream.name)
        assert (result.backward is None) == method.joint
        assert result.kept_bytes >= 0
        assert result.seconds > 0
    # where only the task's labels compete, nobody is worse
    assert all(
        k >= u
        for rows in zip(known.matrix, unknown.matrix, strict=True)
        for k, u in zip(*rows, strict=True)
    )
    assert known.untrained == unknown.untrained == (0.0, 0.0)  # no label is known yet


def test_keys_and_names_are_told_apart() -> None:
    assert [m.key for m in METHODS.values()] == list(METHODS)
    assert len({m.name for m in METHODS.values()}) == len(METHODS)
    assert all(m.paper for m in METHODS.values())
    assert [m.key for m in choose(["pslora", "sequential"])] == ["sequential", "pslora"]
    assert len(choose(["all"])) == len(METHODS)
    with pytest.raises(UsageError, match=r"such as pslora, .*found pslorra; see them all"):
        choose(["pslorra", "pslora"])


@pytest.mark.parametrize("key", ["sequential", "finetune", "pslora", "ewc", "si", "lwf", "joint"])
def test_the_same_seed_gives_the_same_line(
    key: str, results: dict[str, tuple[Result, ...]], stream: Stream
) -> None:
    again = run(METHODS[key], stream, CONFIG, 3)
    assert [r.stable() for r in again] == [r.stable() for r in results[key]]
    other = run(METHODS[key], stream, CONFIG, 4)[0]
    assert other.digest == again[0].digest
    assert other.key != again[0].key
    epochs = replace(CONFIG, train=replace(CONFIG.train, epochs=1))
    assert run(METHODS["frozen"], stream, epochs, 3)[0].digest != again[0].digest


def test_what_keeps_nothing_keeps_nothing_however_many_sessions() -> None:
    keys = ("sequential", "finetune", "average", "l2sp", "lwf")
    long = domains((0.0, 1.0, 2.0))
    assert [run(METHODS[key], long, CONFIG, 0)[0].kept_bytes for key in keys] == [0] * 5
    for key in (
        "frozen",
        "ewc",
        "si",
        "pslora-merge",
    ):  # the same after two sessions and after four
        kept = [
            run(METHODS[key], domains((0.0, 1.0, 2.0, 3.0)[:n]), CONFIG, 0)[0].kept_bytes
            for n in (3, 4)
        ]
        if key != "pslora-merge":
            assert kept[0] == kept[1] > 0
        else:  # the history grows to its budget, and not beyond
            assert kept[1] <= CONFIG.budget.history_bytes + 10_000


def test_on_frozen_features_the_order_of_tasks_does_not_matter() -> None:
    forwards, backwards = (
        run(METHODS["frozen"], domains(shifts), CONFIG, 0)[0]
        for shifts in ((0.0, 2.0, -2.0), (-2.0, 2.0, 0.0))
    )
    assert forwards.matrix[-1] == pytest.approx(backwards.matrix[-1][::-1], abs=0.05)


def test_the_products_variants_differ_in_what_their_names_say() -> None:
    def settings(key: str) -> dict[str, object]:
        learner = METHODS[key].start(_setup())
        assert isinstance(learner, ProductLearner)
        return learner.config.to_dict()

    default = settings("pslora")
    wanted = {
        "pslora-loss": {"merge": "none"},
        "pslora-merge": {"stability.weight": 0.0},
        "pslora-neither": {"merge": "none", "stability.weight": 0.0},
        "pslora-product": {"stability.reading": "product"},
        "pslora-direction": {"stability.magnitude": False},
        "pslora-magnitude": {"stability.direction": False},
        "pslora-max_magnitude": {"merge": "max_magnitude"},
        "pslora-cumulative": {"merge": "cumulative"},
        "pslora-average": {"merge": "average"},
        "pslora-free": {"stability.features": 0.0},
        "pslora-session": {"head.compete": "session"},
        "pslora-all": {"head.compete": "all"},
        "pslora-bare": {"stability.features": 0.0, "head.compete": "all"},
        "pslora-no-transport": {"head.transport": False},
    }
    for key, changes in wanted.items():
        assert _differences(default, settings(key)) == changes, key
    paper = settings("paper")
    preset = replace(paper_preset(), train=CONFIG.train, lora=CONFIG.lora).to_dict()
    assert _differences(preset, paper) == {}
    assert _differences(paper, settings("paper-loss")) == {"merge": "none"}
    assert settings("paper-merge")["stability"]["weight"] == 0.0  # type: ignore[index]
    elementwise = _differences(paper, settings("paper-elementwise"))
    assert elementwise == {"stability.reading": "elementwise"}


def _setup() -> object:
    from edge_pslora.compare.method import Setup

    return Setup(tiny_model(), "classification", CONFIG)


def _differences(one: dict[str, object], other: dict[str, object]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in other.items():
        if isinstance(value, dict):
            inner = _differences(one[name], value)  # type: ignore[arg-type]
            found |= {f"{name}.{k}": v for k, v in inner.items()}
        elif value != one[name]:
            found[name] = value
    return found


def test_the_part_that_is_scored_is_the_one_asked_for(stream: Stream) -> None:
    parts = domains((0.0, 1.0), valid_shift=40.0)
    test, valid = (
        run(METHODS["sequential+analytic"], parts, CONFIG, 0, part=part)[0]
        for part in ("test", "valid")
    )
    assert test.digest != valid.digest
    assert test.average > 0.9 > valid.average  # far from all that was learned
    with pytest.raises(UsageError, match="a validation part; found none"):
        run(METHODS["frozen"], stream, CONFIG, 0, part="valid")


def test_joint_training_sees_the_samples_of_all_tasks() -> None:
    parts = domains((0.0, 2.0))
    rows = parts.joint.inputs.batch(np.arange(len(parts.joint.targets)))["x"].numpy()
    each = [t.train.inputs.batch(np.arange(len(t.train.targets)))["x"] for t in parts.tasks]
    assert np.array_equal(rows, np.concatenate(each))
    result = run(METHODS["joint"], parts, CONFIG, 0)[0]
    assert result.joint
    assert len(result.matrix) == 1


def test_figures_are_those_of_the_metrics() -> None:
    matrix = ((0.9, 0.2), (0.6, 0.8))
    found = figures(matrix, (0.1, 0.3))
    assert found["average"] == average_accuracy(matrix)
    assert found["forgetting"] == forgetting(matrix)
    assert found["forward"] == pytest.approx(0.2 - 0.3)
    assert figures(((0.7,),), (0.0,))["backward"] is None
    assert figures(((0.7, 0.9),), (0.0, 0.0)) == {
        **dict.fromkeys(("learning", "backward", "forward", "forgetting")),
        "average": pytest.approx(0.8),
    }


def test_a_results_file_outlives_a_torn_line(
    tmp_path: Path, results: dict[str, tuple[Result, ...]]
) -> None:
    path = tmp_path / "results.jsonl"
    assert read(path) == []
    one, two = results["pslora"][0], results["frozen"][1]
    append(path, one)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:50])  # killed in the middle of a line
    assert read(path) == [one]
    append(path, two)
    with pytest.raises(DataError, match=r"results.jsonl:2: expected a line"):
        read(path)  # what is not the end of the file is told, not skipped
    path.write_bytes(whole + json.dumps({**asdict(two), "more": 1}).encode() + b"\n")
    with pytest.raises(DataError, match="found other fields"):
        read(path)


def test_a_compressed_results_file_is_read(
    tmp_path: Path, results: dict[str, tuple[Result, ...]]
) -> None:
    path = tmp_path / "r.jsonl"
    result = results["frozen"][0]
    append(path, result)
    packed = tmp_path / "r.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read(packed) == [result]
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(DataError, match="expected gzip"):
        read(packed)
    packed.write_bytes(path.read_bytes())
    with pytest.raises(DataError, match=r"without \.gz"):
        read(packed)


def test_the_table_and_the_sentence(results: dict[str, tuple[Result, ...]]) -> None:
    keys = ("sequential", "frozen", "replay", "joint")
    chosen = [results[key][0] for key in keys]
    lines = format_results(chosen[::-1])
    assert [line.partition(":")[0] for line in lines[1:]] == list(keys)
    assert "replay, 200 samples *" in lines[3]
    assert "(bound)" in lines[4]
    assert len({len(line) for line in lines}) == 1

    def with_averages(**averages: float) -> list[Result]:
        return [
            replace(results[key][0], average=value, seconds=float(i), seed=seed)
            for i, (key, value) in enumerate(averages.items())
            for seed in (0,)
        ]

    text = recommendation(with_averages(sequential=0.5, frozen=0.895, pslora=0.9, joint=0.99))
    assert text.startswith("Use frozen (frozen features + analytic head): 0.895")
    assert "not shown to be below pslora" in text
    assert "one seed" in text
    text = recommendation(with_averages(frozen=0.8, pslora=0.9, replay=0.95))
    assert text.startswith("Use pslora (PS-LoRA (default)): 0.900")
    assert "replay (replay, 200 samples), which keeps training samples, reached 0.950" in text
    with pytest.raises(ValueError, match="keeps no samples"):
        recommendation([results["joint"][0]])


def test_several_seeds_are_tested_in_pairs(results: dict[str, tuple[Result, ...]]) -> None:
    pytest.importorskip("scipy")

    def runs(key: str, averages: tuple[float, ...], seconds: float) -> list[Result]:
        one = results[key][0]
        return [replace(one, average=a, seed=s, seconds=seconds) for s, a in enumerate(averages)]

    best = runs("pslora", (0.90, 0.80, 0.85, 0.82), 9.0)
    steadily = runs("frozen", (0.88, 0.78, 0.831, 0.80), 1.0)  # two points below, every time
    at_times = runs("sequential", (0.95, 0.70, 0.90, 0.75), 1.0)
    assert recommendation([*best, *steadily]).startswith("Use pslora")
    assert recommendation([*best, *at_times]).startswith("Use sequential")


def test_the_documents_name_every_method() -> None:
    page = (Path(__file__).parents[2] / "docs" / "results.md").read_text()
    listed = {key for line in page.splitlines() for key in METHODS if line.startswith(f"| `{key}`")}
    missing = [
        key
        for key in METHODS
        if key not in listed and not (key.endswith("+analytic") and key[:-9] in listed)
    ]
    assert missing == []
