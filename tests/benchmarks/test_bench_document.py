"""docs/results.md says what the kept lines say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.document import measured_blocks, runs_table, with_blocks
from benchmarks.report import OTHER_TASKS, VARIANTS, figures_of, main
from edge_pslora.compare.results import append, read
from edge_pslora.errors import DataError
from tests.compare import comparison_kit as kit

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "results.md"
LINES = sorted((ROOT / "benchmarks" / "results").glob("*.jsonl.gz"))
TEXT = (
    "# Title\n\n<!-- measured: a -->\nold\n<!-- /measured -->\n\n"
    "by hand\n\n<!-- measured: b -->\n<!-- /measured -->\n"
)


def test_the_document_is_what_the_kept_lines_give() -> None:
    """Fails where lines, methods, streams or a configuration changed, and nobody wrote it again by
    make bench-report BENCH='--into docs/results.md --lines benchmarks/results/*.gz'."""
    results = [result for path in LINES for result in read(path)]
    blocks = measured_blocks(results, figures_of(results), VARIANTS, OTHER_TASKS)
    text = DOCUMENT.read_text(encoding="utf-8")
    assert with_blocks(text, blocks, DOCUMENT).splitlines() == text.splitlines()
    assert f"{len(results):,} lines" in text


def test_only_measured_parts_are_written_again() -> None:
    found = with_blocks(TEXT, {"a": "| new |", "b": "\\1"}, Path("x.md"))
    assert found.split("\n") == [
        *("# Title", "", "<!-- measured: a -->", "", "| new |", "", "<!-- /measured -->", ""),
        *("by hand", "", "<!-- measured: b -->", "", "\\1", "", "<!-- /measured -->", ""),
    ]
    assert with_blocks(found, {"a": "| new |", "b": "\\1"}, Path("x.md")) == found


@pytest.mark.parametrize("names", [{"a"}, {"a", "b", "c"}, {"a", "c"}])
def test_a_document_with_other_parts_is_refused(names: set[str]) -> None:
    with pytest.raises(DataError, match=r"x\.md: expected the measured parts .*; found a, b"):
        with_blocks(TEXT, dict.fromkeys(names, ""), Path("x.md"))


def test_runs_of_another_configuration_do_not_count() -> None:
    results = [result for result in read(LINES[0]) if result.stream == "heart"]
    (whole,) = (row for row in runs_table(results).rows if row[0].text == "heart")
    assert whole[3].value == len({(r.method, r.seed) for r in results}) > 0
    other = [replace(result, digest="0" * 64) for result in results]
    assert all(row[3].value == 0 for row in runs_table(other).rows)


def test_report_writes_into_a_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines, document = tmp_path / "lines.jsonl", tmp_path / "x.md"
    for result in kit.lines(seeds=2):
        append(lines, result)
    names = ("runs", "targets", "means", "streams", "ablation", "losses")
    document.write_text("".join(f"<!-- measured: {n} -->\n<!-- /measured -->\n" for n in names))
    arguments = ["--lines", str(lines), "--into", str(document)]
    assert main(arguments, out=tmp_path) == 0
    assert "| PS-LoRA (default) | 2 |" in document.read_text()
    assert f"written: {document}" in capsys.readouterr().out
    assert main([*arguments[:3], str(tmp_path / "none.md")], out=tmp_path) == 4
    assert "none.md" in capsys.readouterr().err
