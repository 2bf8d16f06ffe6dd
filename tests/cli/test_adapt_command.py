"""`adapt`: flags and config files become settings; results become lines or JSON."""

from __future__ import annotations

import inspect
import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from edge_pslora import config as c
from edge_pslora.cli import adapt as adapt_module
from edge_pslora.cli import settings
from edge_pslora.cli.main import main


def _run(*arguments: str) -> None:
    assert main(["adapt", "data.csv", *arguments]) == 0


def test_without_flags_the_settings_are_the_default_preset(pipeline: Any) -> None:
    _run()
    assert pipeline.data == Path("data.csv")
    assert pipeline.given["config"] == c.default_preset()
    assert pipeline.given["workspace"] == Path("edge-pslora")
    assert pipeline.given["model"] is None


def test_every_flag_reaches_its_setting(pipeline: Any) -> None:
    _run(
        *("--model", "auto", "--workspace", "w", "--weights", "w.safetensors", "--task", "t"),
        *("--target", "fc1", "--target", "fc2", "--head-module", "net.out"),
        *("--max-length", "64", "--image-size", "96", "--clip-seconds", "2.5"),
        *("--image-mean", "0.5", "--image-std", "0.1,0.2,0.3"),
        *("--label-column", "y", "--text-column", "x", "--missing", "-9", "--missing", "999"),
        *("--task-type", "regression", "--history-budget", "512KiB", "--anchor-budget", "2MB"),
        *("--ram-budget", "1GB", "--time-budget", "1h30m", "--rank", "4", "--alpha", "8"),
        *("--epochs", "2", "--batch-size", "16", "--learning-rate", "1e-3", "--head", "linear"),
        *("--train-norms", "--seed", "7", "--merge", "average", "--stability-weight", "0.2"),
        *("--stability-temperature", "2", "--stability-reading", "product", "--no-direction"),
        *("--no-magnitude", "--stability-every", "3", "--stability-stride", "4"),
        *("--stability-cache", "int8", "--max-forgetting", "0.05", "--force"),
        *("--ridge", "0.1", "--class-balance", "session", "--label-template", "about {}"),
        *("--head-budget", "3MB", "--factors", "bf16", "--disk-budget", "2GB"),
        *(
            "--stability-pull",
            "0.3",
            "--stability-features",
            "2",
            "--compete",
            "all",
            "--device",
            "cuda:1",
        ),
        *("--early-stop", "--label-smoothing", "0.1", "--balanced-sampling"),
        *("--precision", "bf16", "--micro-batch", "4", "--checkpointing", "--prefix-cache", "int8"),
        *("--adapt-depth", "0.5", "--only-on-power", "--min-battery", "30%"),
        *("--max-temperature", "80C", "--max-load", "1.5", "--min-free", "1GB"),
    )
    assert pipeline.given["config"] == c.AdaptConfig(
        lora=c.LoraConfig(rank=4, alpha=8.0, target_modules=("fc1", "fc2"), factors="bf16"),
        stability=c.StabilityConfig(
            weight=0.2,
            temperature=2.0,
            reading="product",
            direction=False,
            magnitude=False,
            every=3,
            row_stride=4,
            history_cache="int8",
            features=2.0,
            most_pull=0.3,
        ),
        merge="average",
        head=c.HeadConfig(
            kind="linear",
            ridge=0.1,
            class_balance="session",
            compete="all",
            label_template="about {}",
        ),
        train=c.TrainConfig(
            learning_rate=1e-3,
            epochs=2,
            batch_size=16,
            max_length=64,
            train_norms=True,
            seed=7,
            early_stop=True,
            label_smoothing=0.1,
            balanced_sampling=True,
        ),
        engine=c.EngineConfig("bf16", 4, True, "int8", 0.5, "cuda:1"),
        budget=c.BudgetConfig(512 * 1024, 2_000_000, 10**9, 5400.0, 3_000_000, 2 * 10**9),
        gate=c.GateConfig(max_forgetting=0.05, force=True),
    )
    assert pipeline.given["model"] == "auto"
    assert pipeline.given["weights"] == Path("w.safetensors")
    assert (pipeline.given["workspace"], pipeline.given["task"]) == (Path("w"), "t")
    read, model = pipeline.given["read"], pipeline.given["model_options"]
    assert (read.label_column, read.text_column, read.task_type) == ("y", "x", "regression")
    assert read.missing == (-9.0, 999.0)
    assert (model.max_length, model.image_size, model.head_module) == (64, 96, "net.out")
    assert (model.image_mean, model.image_std, model.seed) == (0.5, (0.1, 0.2, 0.3), 7)
    assert model.clip_seconds == 2.5
    assert pipeline.given["eligibility"] == c.EligibilityConfig(True, 30.0, 80.0, 1.5, 10**9)


def test_every_setting_that_a_flag_names_exists() -> None:
    defaults = c.AdaptConfig()
    for section, name in settings._FIELDS.values():
        assert hasattr(getattr(defaults, section) if section else defaults, name)


@pytest.mark.parametrize("preset", list(c.PRESETS))
def test_flags_change_the_preset_they_are_given_with(pipeline: Any, preset: str) -> None:
    _run("--preset", preset, "--rank", "3")
    given = pipeline.given["config"]
    assert given.lora.rank == 3
    assert given.merge == c.PRESETS[preset]().merge
    assert given.head == c.PRESETS[preset]().head


def test_threads_are_set(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    seen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    _run("--threads", "3")
    assert seen == [3]


CONFIGS = {
    "c.toml": 'rank = 4\nmerge = "none"\nhistory_budget = "2MB"\n'
    'target = ["a", "b"]\nforce = true\n',
    "c.json": '{"rank": 4, "merge": "none", "history-budget": 2000000, "target": ["a", "b"], '
    '"force": true, "task": null}',
    "c.yaml": "rank: 4\nmerge: none\nhistory-budget: 2MB\ntarget: [a, b]\nforce: true\n",
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_file_gives_values_and_flags_win(pipeline: Any, tmp_path: Path, name: str) -> None:
    if name.endswith(".yaml"):
        pytest.importorskip("yaml")
    path = tmp_path / name
    path.write_text(CONFIGS[name], encoding="utf-8")
    _run("-c", str(path))
    given = pipeline.given["config"]
    assert (given.lora.rank, given.merge, given.gate.force) == (4, "none", True)
    assert given.budget.history_bytes == 2_000_000
    assert given.lora.target_modules == ("a", "b")
    assert pipeline.given["task"] is None
    _run("--rank", "9", "--target", "z", "--config", str(path))
    given = pipeline.given["config"]
    assert (given.lora.rank, given.lora.target_modules, given.merge) == (9, ("z",), "none")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("c.toml", "rnk = 4", "unknown key 'rnk'"),
        ("c.toml", "config = 'x'", "unknown key 'config'"),
        ("c.toml", "json = true", "unknown key 'json'"),
        ("c.toml", "rank = ", "valid TOML"),
        ("c.toml", "rank = 4.5", "--rank"),
        ("c.toml", "rank = true", "a number or text for rank"),
        ("c.toml", "force = 'yes'", "true or false for force"),
        ("c.toml", "rank = [4]", "a number or text for rank"),
        ("c.toml", "[lora]\nrank = 4", "unknown key 'lora'"),
        ("c.toml", "merge = 'sideways'", "sideways"),
        ("c.json", "[1]", "found a list"),
        ("c.json", "{", "valid JSON"),
        ("c.json", "[" * 100_000, "valid JSON"),
        ("c.ini", "rank = 4", ".toml, .json, .yaml"),
    ],
)
def test_a_bad_config_file_is_wrong_use(
    pipeline: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    text: str,
    said: str,
) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    assert main(["adapt", "d", "-c", str(path)]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert pipeline.data is None


@pytest.mark.parametrize("data", [b"\xff\xfe", b"#" * ((1 << 20) + 1)])
def test_config_bytes_that_are_no_text_are_wrong_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: bytes
) -> None:
    path = tmp_path / "c.toml"
    path.write_bytes(data)
    assert main(["adapt", "d", "-c", str(path)]) == 2
    assert main(["adapt", "d", "-c", str(tmp_path)]) == 2


def test_yaml_without_pyyaml_names_the_extra(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    path = tmp_path / "c.yaml"
    path.write_text("rank: 4", encoding="utf-8")
    assert main(["adapt", "d", "-c", str(path)]) == 2
    assert "pip install 'edge-pslora[yaml]'" in capsys.readouterr().err


def test_the_result_as_json_is_the_result(
    pipeline: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline.facts |= {"accuracy_before": float("nan"), "where": Path("a/b"), "task": "ζ\x1b[2J"}
    assert main(["adapt", "d", "--json"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    facts = json.loads(out)
    assert facts == pipeline.facts | {"accuracy_before": None, "where": "a/b"}


def test_the_result_for_people(pipeline: Any, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline.facts |= {"task": "evil\x1b[2J\nname", "retention": None, "rejected": 3}
    assert main(["adapt", "d", "--workspace", "w"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Generation 2 of w is now served.\n")
    assert "\x1b" not in out
    assert "evil\\x1b[2J\\nname" in out
    assert "3 rows set aside" in out
    assert "0.500 before, 0.900 after, on held-out samples" in out
    assert "model.onnx" in out


def test_the_plan_of_a_run_is_said(pipeline: Any, capsys: pytest.CaptureFixture[str]) -> None:
    plan = {"precision": "bf16", "micro_batch": 4, "checkpointing": True, "prefix": "exact"}
    pipeline.facts |= {"plan": plan | {"peak_bytes": 10**9}}
    assert main(["adapt", "d"]) == 0
    out = capsys.readouterr().out
    assert (
        "bf16, 4 samples at once, activations computed twice, lower layers once, kept exact, "
        "1.00 GB of memory planned"
    ) in out


def test_what_other_libraries_say_is_held_back(
    pipeline: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def chatter() -> None:
        print("on stdout")
        print("on stderr", file=sys.stderr)
        warnings.warn("a warning", stacklevel=1)
        logging.getLogger("torch.onnx").error("a log line")

    pipeline.behave = chatter
    assert main(["adapt", "d", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)
    assert err == ""
    assert logging.root.manager.disable == 0

    pipeline.behave = lambda: print("on stdout")
    assert main(["adapt", "d", "--json", "--debug"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)
    assert err == "on stdout\n"


def test_the_design_contract_of_options_is_there() -> None:
    names = set(inspect.signature(adapt_module.adapt).parameters)
    assert names >= {
        *("data", "model", "workspace", "task", "history_budget", "ram_budget", "time_budget"),
        *("rank", "seed", "as_json"),
    }


def test_other_figures_of_a_task_are_shown(
    pipeline: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = {"perplexity_before": 61.234, "perplexity_after": 12.3, "rmse_after": 2.5}
    pipeline.facts |= {"metric": "token_accuracy", **figures}
    assert main(["adapt", "d"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "token_accuracy 0.500 before, 0.900 after" in out
    assert "perplexity 61.23 before, 12.3 after" in out
    assert "rmse 2.5 " in out
