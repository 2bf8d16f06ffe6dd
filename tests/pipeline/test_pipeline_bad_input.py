"""What cannot be used: one line that says where, expected, found and what to do; nothing changes."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.pipeline import pipeline_kit as kit

pytestmark = pytest.mark.usefixtures("kept_graphs")  # it is not about tracing


def _missing(folder: Path) -> list[Any]:
    return [folder / "no such file.csv"]


def _unknown_format(folder: Path) -> list[Any]:
    (folder / "d.docx").write_text("?")
    return [folder / "d.docx"]


def _pickle(folder: Path) -> list[Any]:
    (folder / "d.pt").write_bytes(b"\x80\x02}q\x00.")
    return [folder / "d.pt"]


def _no_text_column(folder: Path) -> list[Any]:
    data = kit.write_csv(folder / "d.csv", *_rows())
    return [data, "--text-column", "review"]


def _no_label_column(folder: Path) -> list[Any]:
    return [kit.write_csv(folder / "d.csv", *_rows()), "--label-column", "species"]


def _no_text_in_jsonl(folder: Path) -> list[Any]:
    (folder / "d.jsonl").write_text('{"review": "x", "label": "a"}\n' * 9)
    return [folder / "d.jsonl"]


def _labels_of_the_wrong_kind(folder: Path) -> list[Any]:
    x, y = _rows()
    data = kit.write_csv(folder / "d.csv", x, [f"kind {v}" for v in y])
    return [data, "--task-type", "regression"]


def _mixed_labels(folder: Path) -> list[Any]:
    rows = [{"text": "t", "label": 1 if i % 2 else "one"} for i in range(20)]
    (folder / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return [folder / "d.jsonl"]


def _one_class(folder: Path) -> list[Any]:
    x, y = _rows()
    return [kit.write_csv(folder / "d.csv", x, ["same"] * len(y))]


def _one_sample_each(folder: Path) -> list[Any]:
    return [kit.write_csv(folder / "d.csv", np.eye(2), ["a", "b"])]


def _empty(folder: Path) -> list[Any]:
    (folder / "d.csv").write_text("")
    return [folder / "d.csv"]


def _all_images_broken(folder: Path) -> list[Any]:
    for label in "ab":
        (folder / "p" / label).mkdir(parents=True)
        (folder / "p" / label / "x.png").write_bytes(b"not a picture")
    return [folder / "p"]


def _no_such_target(folder: Path) -> list[Any]:
    return [kit.digits_npz(folder / "d.npz", (0, 1), 40), "--target", "query"]


def _target_without_gradient(folder: Path) -> list[Any]:
    """Found out only in training, when the workspace is there already."""
    data = kit.digits_npz(folder / "d.npz", (0, 1), 40)
    return [data, "--model", "tests.pipeline.bad_models:with_an_idle_layer", "--target", "idle"]


def _pickled_weights(folder: Path) -> list[Any]:
    (folder / "w.pt").write_bytes(b"\x80\x02}q\x00.")
    data = kit.digits_npz(folder / "d.npz", (0, 1), 40)
    model = "tests.pipeline.bad_models:linear"
    return [data, "--model", model, "--weights", folder / "w.pt"]


def _no_such_factory(folder: Path) -> list[Any]:
    data = kit.digits_npz(folder / "d.npz", (0, 1), 40)
    return [data, "--model", "no_such_package.nets:build"]


def _no_weights_in_the_folder(folder: Path) -> list[Any]:
    (folder / "hf").mkdir()
    (folder / "hf" / "config.json").write_text('{"model_type": "bert"}')
    (folder / "hf" / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")
    return [kit.write_jsonl(folder / "d.jsonl", ("sport", "food")), "--model", folder / "hf"]


def _no_model(folder: Path) -> list[Any]:
    return [kit.digits_npz(folder / "d.npz", (0, 1), 40), "--model", ""]


def _rows() -> tuple[np.ndarray, np.ndarray]:
    x, y = kit.digits((0, 1), 40)
    return x.reshape(len(x), -1)[:, :9], y


FIRST_SESSION = [
    (_missing, 4),
    (_unknown_format, 4),
    (_pickle, 4),
    (_no_text_column, 4),
    (_no_label_column, 4),
    (_no_text_in_jsonl, 4),
    (_labels_of_the_wrong_kind, 4),
    (_mixed_labels, 4),
    (_one_class, 4),
    (_one_sample_each, 4),
    (_empty, 4),
    (_all_images_broken, 4),
    (_no_such_target, 4),
    (_target_without_gradient, 4),
    (_pickled_weights, 4),
    (_no_such_factory, 4),
    (_no_weights_in_the_folder, 4),
    (_no_model, 4),
]
# what depends on the data alone, and not on the model of a first session
LATER = [
    case
    for case in FIRST_SESSION
    if case[0] not in (_one_class, _no_such_target, _all_images_broken)
]


def _one_line(done: kit.Outcome, code: int) -> None:
    assert done.code == code, done
    assert done.facts["exit_code"] == code
    assert done.err == ""
    for part in ("where", "expected", "found", "remedy"):
        assert done.facts[part], part
    assert "\n" not in done.facts["message"]
    assert "Traceback" not in done.facts["message"]


def _id(case: tuple[Callable[..., Any], int]) -> str:
    return case[0].__name__.strip("_")


@pytest.mark.parametrize("case", FIRST_SESSION, ids=_id)
def test_a_first_session_leaves_nothing_behind(case, run, tmp_path):
    make, code = case
    (tmp_path / "data").mkdir()
    arguments = make(tmp_path / "data")
    model = () if "--model" in arguments else ("--model", "auto")
    done = run("adapt", *arguments, *model, "--workspace", tmp_path / "w")
    _one_line(done, code)
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("case", LATER, ids=_id)
def test_a_later_session_changes_nothing(case, two_sessions, run, tmp_path):
    make, code = case
    before = kit.snapshot(two_sessions)
    done = run("adapt", *make(tmp_path), "--workspace", two_sessions)
    _one_line(done, code)
    assert kit.snapshot(two_sessions) == before


def test_data_of_another_kind(two_sessions, image_workspace, run, tmp_path):
    x, _ = kit.digits(range(4), 60)
    cases = [
        (image_workspace, kit.write_jsonl(tmp_path / "t.jsonl", ("sport", "food"))),
        (image_workspace, kit.digits_npz(tmp_path / "d.npz", (0, 1), 40)),
        (two_sessions, kit.write_images(tmp_path / "photos", (0, 1), 20)),
        (two_sessions, kit.write_npz(tmp_path / "r.npz", x.reshape(-1, 64), x.sum((1, 2)) + 0.5)),
        (
            two_sessions,
            kit.write_npz(tmp_path / "c.npz", x.reshape(-1, 64)[:, :9], np.arange(60) % 2),
        ),
    ]
    for original, data in cases:
        workspace = Path(shutil.copytree(original, tmp_path / f"w {data.stem}"))
        before = kit.snapshot(workspace)
        done = run("adapt", data, "--workspace", workspace)
        _one_line(done, 4)
        assert data.name in done.facts["where"] or done.facts["where"] == "DATA"
        assert kit.snapshot(workspace) == before


def test_another_model(two_sessions, run, tmp_path):
    before = kit.snapshot(two_sessions)
    data = kit.digits_npz(tmp_path / "d.npz", (7, 8), 60)
    for model in ("some.module:factory", tmp_path):
        done = run("adapt", data, "--workspace", two_sessions, "--model", model)
        _one_line(done, 4)
        assert done.facts["error"] == "WorkspaceError"
    assert kit.snapshot(two_sessions) == before


def test_without_a_model_or_with_a_wrong_option(run, tmp_path):
    data = kit.digits_npz(tmp_path / "d.npz", (0, 1), 40)
    for flags in (
        (),
        ("--model", "auto", "--rank", 0),
        ("--model", "auto", "--history-budget", "lots"),
        ("--model", "auto", "--merge", "best"),
        ("--model", "auto", "--weights", tmp_path / "w.safetensors"),
    ):
        done = run("adapt", data, "--workspace", tmp_path / "w", *flags)
        assert done.code == 2, (flags, done)
        assert not (tmp_path / "w").exists()


def test_a_folder_with_other_files_is_no_workspace(run, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    data = kit.digits_npz(tmp_path / "d.npz", (0, 1), 40)
    done = run("adapt", data, "--model", "auto", "--workspace", tmp_path / "home")
    _one_line(done, 4)
    assert kit.snapshot(tmp_path / "home").keys() == {"letter.txt"}


def test_a_damaged_workspace_is_named(workspace, run, tmp_path):
    path = workspace / "generations" / "000002" / "history.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    done = run("adapt", kit.digits_npz(tmp_path / "d.npz", (7, 8), 60), "--workspace", workspace)
    _one_line(done, 4)
    assert "history.safetensors" in done.facts["where"]
    assert run("status", workspace, "--verify").code == 4
    # the way out that the message names
    assert run("rollback", workspace, "--to", 1).code == 0
    good = run("adapt", kit.digits_npz(tmp_path / "e.npz", (7, 8)), "--workspace", workspace)
    assert good.code == 0, good


def test_no_network_is_used(monkeypatch, run, tmp_path):
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    data = kit.digits_npz(tmp_path / "d.npz", (0, 1), 60)
    done = run("adapt", data, "--model", "auto", "--workspace", tmp_path / "w")
    assert done.code == 0, done
