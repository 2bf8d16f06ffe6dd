"""The page of a whole workspace: its figures are the manifests', whatever the workspace is like."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge_pslora.charts import extra
from edge_pslora.cli.main import main
from edge_pslora.pages import sessions
from edge_pslora.pages.facts import SIZE_NAMES, workspace_figures
from edge_pslora.pages.workspace import workspace_page
from edge_pslora.workspace.lock import writer_lock
from edge_pslora.workspace.workspace import Workspace
from tests.pages import pages_kit as kit


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return kit.make_workspace(tmp_path_factory.mktemp("w") / "w", 4, refused=2)


@pytest.fixture
def no_drawings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables are enough where it is not about drawings."""
    monkeypatch.setattr(extra, "find_spec", lambda name: None)


@pytest.fixture(scope="module")
def page(workspace: Workspace) -> str:
    return workspace_page(workspace)


def test_scores_are_those_of_the_manifests(workspace: Workspace, page: str):
    found = kit.Tables(page).figures
    manifests = {n: workspace.generation(n).manifest.metrics for n in workspace.generations()}
    header, *rows = found["accuracy"]
    tasks = [kit.task_name(n) for n in range(1, 5)]
    assert header == ["generation", *tasks, "mean of all so far"]
    for row, (number, metrics) in zip(rows, manifests.items(), strict=True):
        by_task = metrics["accuracy_by_task"]
        assert row[0] == str(number)
        assert row[1:-1] == [by_task.get(task, "–") for task in tasks]
        assert row[-1] == pytest.approx(sum(by_task.values()) / len(by_task), rel=1e-12)
    lost = found["forgetting"]
    first = manifests[2]["accuracy_by_task"][tasks[1]]
    last = manifests[4]["accuracy_by_task"][tasks[1]]
    assert lost[0] == ["task", "1", "2", "3", "4"]
    assert lost[2] == [tasks[1], "–", 0.0, pytest.approx(lost[2][3]), last - first]


def test_layers_and_history_are_those_of_the_manifests(workspace: Workspace, page: str):
    found = kit.Tables(page).figures
    manifests = [workspace.generation(n).manifest.metrics for n in workspace.generations()]
    for place, name in (("conflict", "sign_conflict"), ("magnitude", "relative_norm")):
        rows = found[place][1:]
        for i, row in enumerate(rows):
            values = [m["layers"][i][name] for m in manifests]
            assert row == [kit.KINDS[i], *("–" if v is None else v for v in values)]
    assert "All names begin with encoder.layer.0.attention.self." in page
    # in the first session there was nothing to refuse
    assert [row[1] for row in found["refused"][1:]] == ["–"] * 4
    assert found["history-bytes"][1:] == [
        [str(n), float(m["history_bytes"]), 10_000.0] for n, m in enumerate(manifests, start=1)
    ]
    sizes = found["sizes"]
    assert sizes[0] == ["generation", *SIZE_NAMES, "total"]
    assert [row[0] for row in sizes[1:]] == ["4", "3", "2", "1"]
    assert all(row[2] == 1000.0 and row[-1] == 1000.0 + len("<p>of one") for row in sizes[1:])


def test_every_session_is_told_the_refused_ones_too(workspace: Workspace, page: str):
    text = " ".join(kit.Tables(page).text.split())
    for part in (
        "Learned: accuracy 25.0 % on its held-out samples",
        "Gate: labels of bad day 0 do not follow from inputs",
        "Gate: labels of bad day 1 do not follow from inputs",
        "90.0 % → 87.5 % (−2.5) on samples of earlier sessions; lost most:",
        "1 new label, 4 in all",
        "6 sessions shown, 2 of them refused",
        "generation 4 serves",
        "nothing was known before",
    ):
        assert part in text, part
    told = sessions.session_texts(workspace_figures(workspace))
    assert [s.number for s in told] == [4, 3, 2, None, None, 1]
    assert [s.parent for s in told if s.refused] == [1, 1]


def test_nothing_of_a_name_is_markup_and_nothing_is_loaded(page: str):
    found = kit.Tables(page)
    assert {"script", "img", "link", "iframe", "object", "base", "image", "use"}.isdisjoint(
        found.tags
    )
    assert not [
        n for n in found.names if n.startswith("on") or n in ("src", "srcset", "xlink:href")
    ]
    assert "url(" not in page
    assert "@import" not in page
    assert page.count("http") == 1  # http-equiv
    assert "default-src 'none'" in page
    ids = [line.split('"')[1] for line in page.split(" id=")[1:] if line.startswith('"')]
    assert len(ids) == len(set(ids)) > 20


def test_the_same_workspace_gives_the_same_bytes(workspace: Workspace, page: str):
    matplotlib = pytest.importorskip("matplotlib")
    with matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9, "svg.fonttype": "path"}):
        assert workspace_page(workspace) == page


def test_without_matplotlib_there_are_tables_and_it_says_so(
    workspace: Workspace,
    page: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(extra, "find_spec", lambda name: None)
    out = tmp_path / "page.html"
    assert main(["report", str(workspace.path), "--out", str(out), "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == {"generation": 4, "report": str(out), "charts": False}
    assert said.err.count("\n") == 1
    assert "pip install 'edge-pslora[charts]'" in said.err
    bare = kit.Tables(out.read_text(encoding="utf-8"))
    assert "svg" not in bare.tags
    assert "tables only" in bare.text
    assert bare.figures == kit.Tables(page).figures


@pytest.mark.usefixtures("no_drawings")
def test_a_damaged_generation_is_told_and_the_page_is_made(tmp_path: Path):
    workspace = kit.make_workspace(tmp_path / "w", 3)
    (workspace.path / "generations" / "000002" / "manifest.json").write_bytes(b"{")
    text = kit.Tables(workspace_page(workspace)).text
    assert "damaged" in text
    assert "Generation 2 cannot be read" in text
    assert [s.number for s in workspace_figures(workspace).chain] == [3]


@pytest.mark.usefixtures("no_drawings")
def test_what_was_rolled_back_is_aside(tmp_path: Path):
    workspace = kit.make_workspace(tmp_path / "w", 3)
    with writer_lock(workspace.path):
        workspace.rollback(1)
        kit.publish(workspace, kit.metrics(4, 2))
    figures = workspace_figures(workspace)
    assert [s.number for s in figures.chain] == [1, 4]
    assert [s.number for s in figures.others] == [2, 3]
    text = kit.Tables(workspace_page(workspace)).text
    assert text.count("not among those that led to what serves now") == 2


@pytest.mark.usefixtures("no_drawings")
def test_scores_that_are_no_shares_are_no_percentages(tmp_path: Path):
    workspace = kit.make_workspace(tmp_path / "w", 3, metric="r2")
    text = kit.Tables(workspace_page(workspace)).text
    assert "R2 on each task" in text
    assert "R2 0.500 → " in text


@pytest.mark.usefixtures("no_drawings")
@pytest.mark.parametrize(
    "odd",
    [
        {},
        {"accuracy_by_task": [1], "layers": {"a": 1}, "tasks": 3, "refused_before": "x"},
        {"accuracy_by_task": {"t": 10**400, "u": 1e300}, "accuracy_after": True, "layers": [3, {}]},
        {"refused_before": [3, {"parent": "x", "task": None}], "history_bytes": "many"},
    ],
    ids=["old", "other kinds", "not finite", "odd refusals"],
)
def test_manifests_that_lack_fields_or_hold_odd_ones_still_make_a_page(odd, tmp_path: Path):
    workspace = kit.make_workspace(tmp_path / "w", 1)
    with writer_lock(workspace.path):
        kit.publish(workspace, odd)
    text = kit.Tables(workspace_page(workspace)).text
    assert "generation 2 serves" in text
    assert "accuracy not on record" in text
