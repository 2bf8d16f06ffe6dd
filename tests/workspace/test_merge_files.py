"""Merging PEFT folders into a safetensors file: exact, loud, and nothing written on an error."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_pslora.config import MERGE_RULES
from edge_pslora.core.merge import merge_step
from edge_pslora.errors import AdapterError, EdgePsloraError, ModelError, UsageError
from edge_pslora.merge_files import merge
from edge_pslora.workspace.tensors import open_tensors, read_tensors, write_tensors
from tests.workspace.merge_kit import factors, literal_deltas, make_adapter, make_base


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("rule", MERGE_RULES)
def test_file_equals_a_literal_merge(tmp_path, rule):
    base = make_base(tmp_path / "base.safetensors")
    sets = [factors(seed) for seed in (1, 2, 3)]
    folders = [make_adapter(tmp_path / f"a{i}", value) for i, value in enumerate(sets)]
    report = merge(folders, tmp_path / "base.safetensors", tmp_path / "out.safetensors", rule)
    result = read_tensors(tmp_path / "out.safetensors")
    assert result.keys() == base.keys()
    for name, original in base.items():
        expected = original
        if name in report.merged:
            merged = running = np.zeros_like(original)
            for session, value in enumerate(sets, 1):
                delta = literal_deltas(value, 3.0)[name]
                running = running + delta
                step = running if rule == "cumulative" else delta
                merged = merge_step(rule, merged, step, session)
            expected = original + merged
        np.testing.assert_allclose(result[name], expected, rtol=1e-5, atol=1e-6, err_msg=name)
        assert result[name].dtype == original.dtype
    assert set(report.merged) == set(literal_deltas(sets[0], 1.0))
    assert report.bytes == (tmp_path / "out.safetensors").stat().st_size
    assert json.loads(json.dumps(report.to_dict()))["rule"] == rule


def test_patterns_and_rslora_set_rank_and_scaling_per_layer(tmp_path):
    base = make_base(tmp_path / "base.safetensors")
    tensors = factors(1) | {
        key: value for key, value in factors(2, rank=4).items() if "conv" in key
    }
    folder = make_adapter(
        tmp_path / "a",
        tensors,
        use_rslora=True,
        rank_pattern={"conv": 4},
        alpha_pattern={"encoder.q": 10},
    )
    merge([folder], tmp_path / "base.safetensors", tmp_path / "out.safetensors", "none")
    result = read_tensors(tmp_path / "out.safetensors")
    for name, scaling in {
        "encoder.q.weight": 10 / 2**0.5,
        "encoder.conv.weight": 6 / 4**0.5,
        "encoder.emb.weight": 6 / 2**0.5,
    }.items():
        expected = base[name] + literal_deltas(tensors, scaling)[name]
        np.testing.assert_allclose(result[name], expected, rtol=1e-5, atol=1e-6)


def test_fan_in_fan_out_transposes(tmp_path):
    base = {"h.weight": np.ones((4, 6), np.float32)}
    write_tensors(tmp_path / "base.safetensors", base)
    tensors = {
        "h.lora_A.weight": factors(1)["encoder.q.lora_A.weight"],
        "h.lora_B.weight": factors(1)["encoder.q.lora_B.weight"],
    }
    folder = make_adapter(tmp_path / "a", tensors, fan_in_fan_out=True)
    merge([folder], tmp_path / "base.safetensors", tmp_path / "out.safetensors")
    delta = 3.0 * tensors["h.lora_B.weight"] @ tensors["h.lora_A.weight"]
    result = read_tensors(tmp_path / "out.safetensors")["h.weight"]
    np.testing.assert_allclose(result, 1 + delta.T, rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_dtype_and_metadata_of_the_base_are_kept(tmp_path, dtype):
    base = make_base(tmp_path / "base.safetensors", dtype)
    folder = make_adapter(tmp_path / "a", factors(1))
    merge([folder], tmp_path / "base.safetensors", tmp_path / "out.safetensors", "none")
    with open_tensors(tmp_path / "out.safetensors") as file:
        assert file.header.metadata == {"format": "pt"}
        for name, original in base.items():
            assert file.read(name).dtype == original.dtype
    delta = literal_deltas(factors(1), 3.0)["encoder.q.weight"]
    total = base["encoder.q.weight"].astype(np.float64) + delta
    result = read_tensors(tmp_path / "out.safetensors")["encoder.q.weight"].astype(np.float64)
    step = float(ml_dtypes.finfo(dtype).eps)  # rounded once: within half a step of the dtype
    np.testing.assert_allclose(result, total, rtol=0.51 * step + 1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.removeprefix("encoder."),
        lambda name: name if name.startswith("classifier") else f"model.{name}",
    ],
    ids=["removed", "added"],
)
def test_a_common_prefix_is_found(tmp_path, rename):
    base = make_base(tmp_path / "base.safetensors", rename=rename)
    tensors = factors(1) | {"classifier.weight": np.full((2, 6), 5, np.float32)}
    folder = make_adapter(tmp_path / "a", tensors, modules_to_save=["classifier"])
    report = merge([folder], tmp_path / "base.safetensors", tmp_path / "out.safetensors", "none")
    result = read_tensors(tmp_path / "out.safetensors")
    assert result.keys() == base.keys()
    assert report.replaced == ("classifier.weight",)
    np.testing.assert_array_equal(result["classifier.weight"], 5)
    name = rename("encoder.q.weight")
    expected = base[name] + literal_deltas(tensors, 3.0)["encoder.q.weight"]
    np.testing.assert_allclose(result[name], expected, rtol=1e-5, atol=1e-6)


def test_saved_modules_replace_and_new_heads_are_added(tmp_path):
    make_base(tmp_path / "base.safetensors")
    saved = {"score.weight": np.ones((5, 6), np.float32)}
    folder = make_adapter(tmp_path / "a", factors(1) | saved, modules_to_save=["score"])
    report = merge([folder], tmp_path / "base.safetensors", tmp_path / "out.safetensors")
    assert report.added == ("score.weight",)
    np.testing.assert_array_equal(read_tensors(tmp_path / "out.safetensors")["score.weight"], 1)


def test_two_adapters_that_add_one_name_must_agree(tmp_path):
    make_base(tmp_path / "base.safetensors")
    folders = []
    for number, more in enumerate(
        (
            {"score.weight": np.ones((5, 6), np.float32)},
            {"score.weight": np.ones((7, 6), np.float32)},
            {"score.base_layer.weight": np.ones((5, 6), np.float32)},
        )
    ):
        tensors = factors(number) | more
        folders.append(make_adapter(tmp_path / f"a{number}", tensors, modules_to_save=["score"]))
    for second, message in ((1, r"shape \(5, 6\), as in the base"), (2, "a base with score")):
        pair = [folders[0], folders[second]]
        with pytest.raises(AdapterError, match=message):
            merge(pair, tmp_path / "base.safetensors", tmp_path / "out.safetensors")


def test_trained_biases_replace_and_copies_must_match(tmp_path):
    base = make_base(tmp_path / "base.safetensors")
    extra = {
        "encoder.q.base_layer.bias": np.full(6, 9, np.float32),
        "encoder.emb.base_layer.weight": base["encoder.emb.weight"],
    }
    folder = make_adapter(tmp_path / "a", factors(1) | extra, bias="all")
    merge([folder], tmp_path / "base.safetensors", tmp_path / "out.safetensors")
    np.testing.assert_array_equal(read_tensors(tmp_path / "out.safetensors")["encoder.q.bias"], 9)
    extra["encoder.emb.base_layer.weight"] = base["encoder.emb.weight"] + 1
    other = make_adapter(tmp_path / "b", factors(1) | extra, bias="all")
    with pytest.raises(AdapterError, match="a copy of the base"):
        merge([other], tmp_path / "base.safetensors", tmp_path / "out2.safetensors")


def without(name: str) -> dict:
    return {key: value for key, value in factors(1).items() if key != name}


def changed(name: str, value: float) -> dict:
    return {key: np.full_like(v, value) if key == name else v for key, v in factors(1).items()}


Q_A, Q_B = "encoder.q.lora_A.weight", "encoder.q.lora_B.weight"
BAD_ADAPTERS = {
    "not lora": (factors(1), {"peft_type": "IA3"}, "peft_type LORA"),
    "no type": (factors(1), {"peft_type": None}, "peft_type LORA"),
    "dora": (factors(1), {"use_dora": True}, "use_dora"),
    "lora bias": (factors(1), {"lora_bias": True}, "lora_bias"),
    "unknown field": (factors(1), {"use_next_year": {"k": 1}}, "use_next_year"),
    "pissa": (factors(1), {"init_lora_weights": "pissa"}, "leaves the base weights"),
    "rank": (factors(1), {"r": 3}, r"A \[3, in\]"),
    "rank zero": (factors(1), {"r": 0}, "a rank r from 1"),
    "alpha text": (factors(1), {"lora_alpha": "six"}, "lora_alpha"),
    "slow pattern": (factors(1), {"rank_pattern": {"(a+)+b": 2}}, "simple patterns"),
    "broken pattern": (factors(1), {"alpha_pattern": {"(": 2}}, "simple patterns"),
    "no B": (without(Q_B), {}, "both factors"),
    "no factors": ({"x.bias": np.ones(2, np.float32)}, {"bias": "all"}, "LoRA factors"),
    "unknown key": (factors(1) | {"x.y": np.ones(2, np.float32)}, {}, "LoRA factors and"),
    "zero B": (changed(Q_B, 0.0), {}, "an update that is zero"),
    "tiny": (changed(Q_B, 1e-12), {}, "too small for its dtype"),
    "nan": (changed(Q_A, np.nan), {}, "finite values"),
    "overflow": (changed(Q_B, 3e38), {}, "not finite"),
    "missing target": (
        factors(1)
        | {"z.lora_A.weight": np.ones((2, 4), np.float32)}
        | {"z.lora_B.weight": np.ones((6, 2), np.float32)},
        {},
        "z.weight in",
    ),
    "wrong base shape": (
        factors(1) | {Q_A: np.ones((2, 5), np.float32)},
        {},
        r"shape \(6, 4\), as the base weight; found \(6, 5\)",
    ),
    "saved shape": (
        factors(1) | {"classifier.weight": np.ones((3, 6), np.float32)},
        {"modules_to_save": ["classifier"]},
        r"shape \(2, 6\)",
    ),
    "saved dtype": (
        factors(1) | {"classifier.weight": np.ones((2, 6), np.int8)},
        {"modules_to_save": ["classifier"]},
        r"F32 of shape \(2, 6\), as in the base; found I8",
    ),
    "copy of nothing": (
        factors(1) | {"gone.base_layer.weight": np.ones((2, 2), np.float32)},
        {},
        r"a base with gone\.weight; found none",
    ),
    "saved and adapted": (
        factors(1) | {"encoder.q.weight": np.ones((6, 4), np.float32)},
        {"modules_to_save": ["q"]},
        "either adapted or saved",
    ),
}


@pytest.mark.parametrize("case", BAD_ADAPTERS)
def test_bad_adapters_are_refused_and_nothing_is_written(tmp_path, case):
    tensors, config, message = BAD_ADAPTERS[case]
    make_base(tmp_path / "base.safetensors")
    folder = make_adapter(tmp_path / "a", tensors, **config)
    before = left_in(tmp_path)
    with pytest.raises(AdapterError, match=message) as caught:
        merge([folder], tmp_path / "base.safetensors", tmp_path / "out.safetensors", "none")
    assert left_in(tmp_path) == before
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("factor", [10, 100, 1000])
def test_an_adapter_on_another_scale_is_refused_unless_asked_for(tmp_path, factor):
    make_base(tmp_path / "base")
    adapter = make_adapter(tmp_path / "a", factors(1), lora_alpha=4 * factor)
    with pytest.raises(AdapterError, match=r"at most 1 times the weight; found [\d.]+ times"):
        merge([adapter], tmp_path / "base", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    merge([adapter], tmp_path / "base", tmp_path / "out", max_update=np.inf)
    make_adapter(tmp_path / "as it was", factors(1), lora_alpha=4)
    merge([tmp_path / "as it was"], tmp_path / "base", tmp_path / "out")


def test_half_precision_overflow_is_refused(tmp_path):
    make_base(tmp_path / "base.safetensors", np.float16)
    folder = make_adapter(tmp_path / "a", changed(Q_B, 1e6))
    with pytest.raises(AdapterError, match="an overflow"):
        merge([folder], tmp_path / "base.safetensors", tmp_path / "out.safetensors")


def test_missing_and_pickled_inputs(tmp_path):
    make_base(tmp_path / "base.safetensors")
    good = make_adapter(tmp_path / "good", factors(1))
    pickled = make_adapter(tmp_path / "pickled", factors(1))
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    base, out = tmp_path / "base.safetensors", tmp_path / "out.safetensors"
    with pytest.raises(AdapterError, match="never loaded"):
        merge([pickled], base, out)
    with pytest.raises(AdapterError, match="no such folder"):
        merge([tmp_path / "nowhere"], base, out)
    with pytest.raises(ModelError, match="readable file"):
        merge([good], tmp_path / "nowhere.safetensors", out)
    with pytest.raises(UsageError, match="at least one"):
        merge([], base, out)
    with pytest.raises(UsageError, match="max_magnitude"):
        merge([good], base, out, "biggest")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="one of the inputs"):
        merge([good], base, base)
    with pytest.raises(UsageError, match="one of the inputs"):
        merge([good], base, good / "adapter_model.safetensors")
    with pytest.raises(UsageError, match="existing folder"):
        merge([good], base, tmp_path / "no" / "out.safetensors")
    assert not out.exists()


def test_integer_targets_are_refused(tmp_path):
    write_tensors(tmp_path / "base.safetensors", {"encoder.q.weight": np.ones((6, 4), np.int8)})
    tensors = {Q_A: factors(1)[Q_A], Q_B: factors(1)[Q_B]}
    folder = make_adapter(tmp_path / "a", tensors)
    with pytest.raises(ModelError, match="quantised"):
        merge([folder], tmp_path / "base.safetensors", tmp_path / "out.safetensors")


def test_an_existing_output_survives_an_error(tmp_path):
    make_base(tmp_path / "base.safetensors")
    (tmp_path / "out.safetensors").write_bytes(b"precious")
    folder = make_adapter(tmp_path / "a", changed(Q_B, 0.0))
    with pytest.raises(EdgePsloraError):
        merge([folder], tmp_path / "base.safetensors", tmp_path / "out.safetensors")
    assert (tmp_path / "out.safetensors").read_bytes() == b"precious"


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(order=st.permutations([1, 2, 3]), rule=st.sampled_from(["none", "max_magnitude"]))
def test_order_does_not_matter_to_symmetric_rules(tmp_path_factory, order, rule):
    folder = tmp_path_factory.mktemp("order")
    make_base(folder / "base.safetensors")
    for seed in (1, 2, 3):
        make_adapter(folder / f"a{seed}", factors(seed))
    for name, seeds in {"x": (1, 2, 3), "y": order}.items():
        merge([folder / f"a{s}" for s in seeds], folder / "base.safetensors", folder / name, rule)
    one, other = read_tensors(folder / "x"), read_tensors(folder / "y")
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-5, atol=1e-6)
