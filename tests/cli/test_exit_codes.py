"""Every way to fail has its exit code, one line, and one JSON object when asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NoReturn

import pytest

from edge_pslora import errors
from edge_pslora.cli.main import main


def _error(kind: type[errors.EdgePsloraError]) -> errors.EdgePsloraError:
    return kind("d.csv:3", expected="a number", found="'x\ny'", remedy="correct that line")


def _raising(error: BaseException) -> Callable[[], NoReturn]:
    def behave() -> NoReturn:
        raise error

    return behave


FAILURES = [
    (_error(errors.EdgePsloraError), 1),
    (_error(errors.UsageError), 2),
    (_error(errors.GateRefusedError), 3),
    (_error(errors.InputError), 4),
    (_error(errors.DataError), 4),
    (_error(errors.ModelError), 4),
    (_error(errors.AdapterError), 4),
    (_error(errors.WorkspaceError), 4),
    (_error(errors.WorkspaceLockedError), 5),
    (_error(errors.BudgetError), 6),
    (RuntimeError("tensor\nsizes"), 1),
    (OSError(28, "No space left on device"), 1),
    (MemoryError(), 1),
    (KeyboardInterrupt(), 130),
]
WRONG_USE = [
    ["adapt"],
    ["adapt", "d", "--rnk", "3"],
    ["adapt", "d", "--rank", "three"],
    ["adapt", "d", "--rank", "0"],
    ["adapt", "d", "--rank"],
    ["adapt", "d", "--merge", "sideways"],
    ["adapt", "d", "--preset", "none"],
    ["adapt", "d", "--ram-budget", "plenty"],
    ["adapt", "d", "--time-budget", "soon"],
    ["adapt", "d", "--threads", "0"],
    ["adapt", "d", "--image-mean", "0.1,0.2"],
    ["adapt", "d", "--image-std", "grey"],
    ["adapt", "d", "e"],
    ["adapt", "d", "--config", "missing.toml"],
    ["stats"],
    ["--nonsense"],
    ["export", "w", "out"],
    ["export", "w", "out", "--format", "pickle"],
    ["merge", "a"],
    ["rollback", "w", "--to", "0"],
]


def _one_line(text: str) -> str:
    assert text.endswith("\n")
    assert text.count("\n") == 1
    return text


@pytest.mark.parametrize(("error", "code"), FAILURES, ids=lambda v: str(v).split("\n")[0][:40])
def test_a_failure_is_one_line_and_its_code(
    pipeline: Any, capsys: pytest.CaptureFixture[str], error: BaseException, code: int
) -> None:
    pipeline.behave = _raising(error)
    assert main(["adapt", "d"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert _one_line(err).startswith("edge-pslora: ")
    assert "Traceback" not in err
    if code == 1 and not isinstance(error, errors.EdgePsloraError):
        assert type(error).__name__ in err
        assert "--debug" in err


@pytest.mark.parametrize(("error", "code"), FAILURES, ids=lambda v: str(v).split("\n")[0][:40])
def test_a_failure_is_one_json_object(
    pipeline: Any, capsys: pytest.CaptureFixture[str], error: BaseException, code: int
) -> None:
    pipeline.behave = _raising(error)
    assert main(["adapt", "d", "--json"]) == code
    out, err = capsys.readouterr()
    facts = json.loads(_one_line(out))
    assert facts["exit_code"] == code
    assert facts["error"]
    assert facts["message"]
    assert err == ""


def test_the_json_of_our_errors_has_all_four_parts(
    pipeline: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline.behave = _raising(_error(errors.DataError))
    main(["adapt", "d", "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert facts["error"] == "DataError"
    assert (facts["where"], facts["expected"]) == ("d.csv:3", "a number")
    assert (facts["found"], facts["remedy"]) == ("'x y'", "correct that line")


@pytest.mark.parametrize("error", [_error(errors.DataError), RuntimeError("x")])
@pytest.mark.parametrize("as_json", [False, True])
def test_debug_adds_the_traceback_on_stderr(
    pipeline: Any, capsys: pytest.CaptureFixture[str], error: Exception, as_json: bool
) -> None:
    pipeline.behave = _raising(error)
    assert main(["adapt", "d", "--debug", *(["--json"] if as_json else [])]) > 0
    out, err = capsys.readouterr()
    assert "Traceback" in err
    assert "in behave" in err
    assert "again with --debug" not in err + out
    if as_json:
        assert json.loads(_one_line(out))["message"]


@pytest.mark.parametrize("arguments", WRONG_USE, ids=" ".join)
def test_wrong_use_is_exit_2(
    pipeline: Any, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert _one_line(err).startswith("edge-pslora")
    assert "; found " in err
    assert pipeline.data is None

    assert main([*arguments, "--json"]) == 2
    out, err = capsys.readouterr()
    facts = json.loads(_one_line(out))
    assert (facts["error"], facts["exit_code"], err) == ("UsageError", 2, "")
    assert set(facts) >= {"where", "expected", "found", "remedy", "message"}


def test_a_refusal_is_exit_3_with_the_whole_result(
    pipeline: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline.facts |= {"promoted": False, "reason": "worse on the anchor samples"}
    assert main(["adapt", "d", "--json"]) == 3
    assert json.loads(capsys.readouterr().out) == pipeline.facts
    assert main(["adapt", "d"]) == 3
    out = capsys.readouterr().out
    assert out.startswith("Refused: the old model still serves.\n")
    assert "worse on the anchor samples" in out


def test_json_after_two_dashes_is_a_file_name(
    pipeline: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline.behave = _raising(_error(errors.DataError))
    assert main(["adapt", "--", "--json"]) == 4
    assert capsys.readouterr().out == ""
    assert str(pipeline.data) == "--json"


def test_no_arguments_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "adapt" in capsys.readouterr().out
