"""The stream scripts: how they cut data, what they ask the command line for, what they report."""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.streams import __main__ as every
from benchmarks.streams import language, run
from benchmarks.streams.command import CommandError, edge_pslora
from benchmarks.streams.files import divided, link_files, write_tables, write_texts
from benchmarks.streams.main import main
from benchmarks.streams.plan import Cut, Plan, Session, StreamScript, Test, paired
from benchmarks.streams.report import markdown, rows_of
from benchmarks.streams.run import run_plan
from benchmarks.streams.tiny_language import make_model
from edge_pslora.cli.main import main as command_line
from edge_pslora.errors import DataError, UsageError

CUT = Cut(train=None, test=None)
Command = Callable[..., dict[str, Any]]


def test_data_is_cut_into_disjoint_parts_that_the_seed_decides() -> None:
    train, test = divided(range(100), CUT)
    assert sorted([*train, *test]) == list(range(100))
    assert len(test) == 30
    assert divided(range(100), CUT) == (train, test)
    assert divided(range(100), Cut(None, None, seed=1)) != (train, test)
    small, few = divided(range(100), Cut(train=8, test=4))
    assert (len(small), len(few)) == (8, 4)
    assert not {*small} & {*few}
    with pytest.raises(DataError, match="samples to train on"):
        divided([1], CUT)


def test_files_of_the_sessions(tmp_path: Path) -> None:
    table = write_tables(
        tmp_path / "t", ["a", "b"], {"train": [["1", "x,y"]], "test": [["2", "z"]]}
    )
    assert (table / "train.csv").read_text().splitlines() == ["a,b", '1,"x,y"']
    texts = write_texts(tmp_path / "j", {"train": [{"text": "ä"}], "test": []})
    assert (texts / "train.jsonl").read_text(encoding="utf-8") == '{"text": "ä"}\n'
    picture = tmp_path / "all" / "cat" / "1.jpg"
    picture.parent.mkdir(parents=True)
    picture.write_bytes(b"x")
    linked = link_files(tmp_path / "p", {"train": [picture], "test": []})
    assert (linked / "train" / "cat" / "1.jpg").read_bytes() == b"x"


class Commands:
    """Answers as `edge-pslora` would; the second session is refused."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder, []  # type: ignore[var-annotated]

    def __call__(
        self, arguments: Sequence[str], imports: Sequence[Path] = (), allowed: Sequence[int] = (0,)
    ) -> dict[str, Any]:
        self.calls.append(list(arguments))
        if arguments[0] == "adapt":
            number = sum(call[0] == "adapt" for call in self.calls)
            (self.folder / "history.safetensors").write_bytes(b"x" * 10)
            return {
                "generation": number,
                "promoted": number != 2,
                "reason": "worse",
                "samples": 9,
                "accuracy_before": None,
                "accuracy_after": 0.5,
                "retention": None,
                "history_bytes": 100,
                "peak_rss_bytes": 1000,
                "wall_seconds": 2.0,
                "files": {"model.safetensors": str(self.folder / "model.safetensors")},
            }
        score = 1 - len(self.calls) / 100
        compared = "--compare-torch" in arguments
        return {
            "metric": "accuracy",
            "accuracy": score,
            "figures": {"accuracy": score, "loss": 2 * score},
            "samples": 5,
            "agreement": 1.0 if compared else None,
            "max_abs_error": 1e-6 if compared else None,
        }


def _plan(**more: Any) -> Plan:
    names = ("one", "two", "three")
    sessions, tests = paired(names, [Path(f"data/{name}") for name in names])
    return Plan(
        "s", "a stream", "domain-incremental", "auto", sessions, tests, ("--missing=-9",), **more
    )


def test_each_session_is_one_adapt_and_the_model_is_named_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = Commands(tmp_path)
    monkeypatch.setattr(run, "edge_pslora", commands)
    said: list[str] = []
    plan = _plan(first=("--weights", "w"), train=("--epochs", "2"), keep_testing=True)
    result = run_plan(plan, tmp_path / "w", ["--seed", "1"], said.append)
    kinds = [call[0] for call in commands.calls]
    assert kinds == ["adapt", "eval", "adapt", *["eval"] * 2, "adapt", *["eval"] * 6]
    first, second, third = (call for call in commands.calls if call[0] == "adapt")
    common = ["--missing=-9", "--epochs", "2", "--seed", "1"]
    workspace = ["--workspace", str(tmp_path / "w")]
    assert first == [
        *("adapt", "data/one", *workspace, "--task", "one"),
        *(*common, "--model", "auto", "--weights", "w"),
    ]
    assert second == ["adapt", "data/two", *workspace, "--task", "two", *common]
    assert third[1] == "data/three"
    assert [call[-1] for call in commands.calls[-3:]] == ["--compare-torch"] * 3
    assert [session.promoted for session in result.sessions] == [True, False, True]
    assert {session.state_bytes for session in result.sessions} == {10}
    assert any("refused: worse" in line for line in said)
    assert [round(test.learned, 2) for test in result.tests] == [0.98, 0.95, 0.91]
    assert [round(test.end, 2) for test in result.tests] == [0.9, 0.89, 0.88]
    assert result.backward == pytest.approx(((0.9 - 0.98) + (0.89 - 0.95)) / 2)
    assert result.forgetting == pytest.approx(((0.98 - 0.9) + (0.95 - 0.89)) / 2)
    rows = {row.figure: row.measured for row in rows_of(result)}
    assert rows["average accuracy at the end"] == pytest.approx(0.89)
    assert rows["history bytes, last session / first"] == 1
    lines = markdown(plan, result, "python x", "2026-01-31T12:00:00")
    assert lines[2] == "| one | 5 | 0.980 | 0.900 | 1.96 | 1.8 | 1.0000, 1e-06 |"
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    assert "refused by the gate: two" in lines[-1]


def test_without_further_tests_only_the_new_one_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = Commands(tmp_path)
    monkeypatch.setattr(run, "edge_pslora", commands)
    run_plan(_plan(), tmp_path / "w", say=lambda text: None)
    kinds = [call[0] for call in commands.calls]
    assert kinds == [*["adapt", "eval"] * 3, *["eval"] * 3]


def test_an_error_of_the_command_is_told_with_its_sentence(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"4: .*gone\.csv: expected a readable file"):
        edge_pslora(["inspect", str(tmp_path / "gone.csv")])


def _tiny(work: Path, cut: Cut) -> Plan:
    """Two sessions of points around two centres; the second has them turned around."""
    sessions, tests = [], []
    for number, sign in enumerate((1, -1)):
        rows = [
            [str(sign * (1 if i % 2 else -1) + math.sin(i) / 2), str(math.cos(i)), "ab"[i % 2]]
            for i in range(60)
        ]
        train, test = divided(rows, cut)
        folder = write_tables(
            work / str(number), ["x", "y", "kind"], {"train": train, "test": test}
        )
        sessions.append(Session(f"turn {number}", folder))
        tests.append(Test(f"turn {number}", folder, number))
    return Plan(
        "tiny",
        "points",
        "domain-incremental",
        "auto",
        tuple(sessions),
        tuple(tests),
        read=("--label-column", "kind"),
    )


def _first_as_a_process() -> Command:
    """The first command is a process, as every one is of a real run; the others save its start."""
    calls = 0

    def run_it(
        arguments: Sequence[str], imports: Sequence[Path] = (), allowed: Sequence[int] = (0,)
    ) -> dict[str, Any]:
        nonlocal calls
        calls += 1
        if calls == 1:
            return edge_pslora(arguments, imports, allowed)
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            code = command_line([*arguments, "--json"])
        facts: dict[str, Any] = json.loads(out.getvalue())
        assert code in allowed, facts
        return facts

    return run_it


@pytest.mark.slow
def test_a_stream_of_two_sessions_really_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "edge_pslora", _first_as_a_process())
    assert main(StreamScript("tiny", CUT, _tiny), ["--limit", "30"], out=tmp_path) == 0
    assert "| turn 0 |" in capsys.readouterr().out
    content = json.loads((tmp_path / "stream-tiny-limit.json").read_text())
    assert {"machine", "date", "commit", "rows", "markdown"} <= set(content)
    # a fifth of the training part is held out by adapt itself: there are few
    assert [session["samples"] for session in content["sessions"]] == [24, 24]
    assert all(test["agreement"] == 1 for test in content["tests"])
    assert (tmp_path / "streams" / "tiny-limit" / "workspace" / "workspace.json").is_file()


@pytest.mark.parametrize("name", sorted(every.STREAMS))
def test_each_stream_cuts_the_real_data(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(language, "make_model", lambda folder, texts, steps: folder)
    try:
        plan = every.STREAMS[name].prepare(tmp_path, Cut(4, 4, sessions=2))
    except UsageError as missing:
        pytest.skip(str(missing))
    assert len(plan.sessions) == 2
    for session in plan.sessions:
        assert any(file.is_file() for file in session.data.rglob("*"))
    assert {test.learned for test in plan.tests} <= {0, 1}
    assert plan.tests[-1].learned == 1


@pytest.mark.slow
def test_the_small_language_model_is_a_folder_that_learned_something(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    said: list[str] = []
    texts = [f"the {a} of the {b} is here" for a in ("sound", "end") for b in ("sea", "sky")] * 200
    folder = make_model(tmp_path / "m", texts, 12, said.append)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        file.name for file in folder.iterdir()
    }
    perplexity = float(said[0].rsplit(" ", 1)[1])
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert perplexity < len(tokenizer) / 2
    assert tokenizer.decode(tokenizer("the end of the sky")["input_ids"]) == "the end of the sky"


def test_a_stream_without_its_data_ends_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGE_PSLORA_DATA", str(tmp_path))
    assert main(every.STREAMS["heart"], [], out=tmp_path / "out") == 2
    assert "set EDGE_PSLORA_DATA" in capsys.readouterr().err


def test_all_go_on_after_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[tuple[str, list[str]]] = []

    def fake(script: StreamScript, arguments: list[str]) -> int:
        ran.append((script.name, arguments))
        return 4 if script.name == "gas" else 0

    monkeypatch.setattr(every, "main", fake)
    assert every.run_all(["gas", "heart", "--limit", "9"]) == 4
    assert ran == [("gas", ["--limit", "9"]), ("heart", ["--limit", "9"])]
    assert "gas: FAILED, exit code 4" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        every.run_all(["no-such-stream"])
