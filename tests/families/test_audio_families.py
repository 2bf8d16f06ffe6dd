"""The whole way with sound: adapt, merge, export, judge; what models are given of a recording."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from edge_pslora import AdaptConfig, TrainConfig, adapt
from edge_pslora.data.audio import read_clip
from edge_pslora.data.read import read_dataset
from edge_pslora.data.types import Samples
from edge_pslora.errors import DataError, ModelError, UsageError
from edge_pslora.evaluation import evaluate
from edge_pslora.exporters.export import export_generation
from edge_pslora.exporters.export_options import ExportOptions
from edge_pslora.exporters.run import open_onnx
from edge_pslora.models.audio_forms import log_mel
from edge_pslora.models.encode_audio import AudioEncoder
from edge_pslora.models.load import import_base, load_model
from edge_pslora.models.options import ModelOptions
from edge_pslora.models.types import LoadedModel
from edge_pslora.training.targets import find_targets
from edge_pslora.workspace.workspace import Workspace
from tests.audio_kit import RATE, tone, write_tones, write_wav
from tests.families import speech_kit as kit
from tests.families.family_checks import Served, assert_parity, served

transformers = pytest.importorskip("transformers")
pytest.importorskip("soundfile")
pytest.importorskip("soxr")
pytest.importorskip("kaldi_native_fbank")

CONFIG = AdaptConfig(train=TrainConfig(epochs=3, learning_rate=5e-3, batch_size=16))


def opened(folder: Path, base: Path, samples: Samples, **options: float) -> LoadedModel:
    base.mkdir()
    source = import_base(str(folder), None, samples, ModelOptions(**options), base)  # type: ignore[arg-type]
    return load_model(source, base)


def sounds(folder: Path, n: int = 3, seconds: float = 0.3) -> Samples:
    return read_dataset(write_tones(folder, ("low", "high"), n, seconds=seconds)).train


def two_sessions(model: str, folder: Path, n: int = 24) -> Path:
    """A workspace that learned two sounds and then two others."""
    for number, names in enumerate((("low", "high"), ("middle", "wide"))):
        data = write_tones(folder / f"{number}", names, n)
        result = adapt(data, model=model, workspace=folder / "w", config=CONFIG)
        assert result.promoted, result.reason
        assert result.metrics["onnx_max_abs_error"] < 1e-3
    return folder / "w"


def model_length(model: LoadedModel) -> int:
    return int(model.source.options["audio"]["longest"])


@pytest.mark.slow
@pytest.mark.parametrize("family", ["auto", *kit.AUDIO])
def test_two_sessions(family, tmp_path, device):
    """Learned, kept, read by transformers, and run where there is no torch."""
    model = family if family == "auto" else str(kit.AUDIO[family](tmp_path / "tiny"))
    workspace = two_sessions(model, tmp_path)
    test = write_tones(tmp_path / "test", ("low", "high", "middle", "wide"), 8, seed=500)
    found = evaluate(workspace, test, compare_torch=True)
    assert found.agreement == 1.0
    assert found.accuracy > (0.9 if family == "auto" else 0.5)  # a quarter by chance
    # the anchors are 16-bit sound, and judged as such
    anchors = load_file(Workspace.open(workspace).published(None).file("anchor.safetensors"))
    assert any(array.dtype == np.int16 and array.ndim == 2 for array in anchors.values())
    samples = read_dataset(test).train
    the_device_takes_waves_of_any_length(served(workspace, device), samples, family)
    if family != "auto":
        the_merged_file_is_read_by_transformers(family, tmp_path, samples)


def the_device_takes_waves_of_any_length(found: Served, samples: Samples, family: str) -> None:
    inputs = found.model.encoder.encode(samples)
    batches = [inputs.batch(np.array(rows)) for rows in ([0, 3, 5], [2])]
    if family.startswith("wav2vec2"):
        for size in (136, 333, 1_500):
            batches.append({name: value[:, :size] for name, value in batches[0].items()})
    assert_parity(found, batches)


def the_merged_file_is_read_by_transformers(family: str, tmp_path: Path, samples: Samples) -> None:
    """Every tensor traced, also those that weight norm computes a convolution from."""
    export_generation(tmp_path / "w", tmp_path / "out", ExportOptions("safetensors"))
    folders = (tmp_path / "tiny", tmp_path / "out")
    base, merged = (load_file(folder / "model.safetensors") for folder in folders)
    changed = {name for name in base if not np.array_equal(base[name], merged[name])}
    assert set(base) <= set(merged)
    assert changed
    assert not [n for n in changed if "conv" in n or "embed" in n or "norm" in n]
    model, report = transformers.AutoModel.from_pretrained(
        tmp_path / "out", local_files_only=True, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["mismatched_keys"]
    state = model.state_dict()
    weight_norm = [name for name in state if "parametrizations" in name]
    assert bool(weight_norm) == (family != "ast")
    loaded = opened(tmp_path / "out", tmp_path / "again", samples)
    assert set(weight_norm) <= set(loaded.file_names)
    batch = loaded.encoder.encode(samples).batch(np.arange(4))
    head = load_file(tmp_path / "out" / "head.safetensors")
    with torch.no_grad():
        logits = loaded.backbone(**batch).numpy() @ head["weight"].T + head["bias"]
    runner = open_onnx(Workspace.open(tmp_path / "w").published(None).file("model.onnx"))
    found = runner.run({name: value.numpy() for name, value in batch.items()})
    np.testing.assert_allclose(found, logits, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "suffix"),
    [
        ("wav2vec2", "ForSequenceClassification"),
        ("wav2vec2-masked", "ForSequenceClassification"),
        ("ast", "ForAudioClassification"),
    ],
)
def test_a_classifier_of_the_base_is_kept(family, suffix, tmp_path):
    names = {"id2label": {0: "low", 1: "high"}, "label2id": {"low": 0, "high": 1}}
    folder = kit.AUDIO[family](tmp_path / "tiny", suffix, **names)
    data = write_tones(tmp_path / "data", ("low", "high"), 16)
    result = adapt(data, model=str(folder), workspace=tmp_path / "w", config=CONFIG)
    assert result.promoted, result.reason
    assert result.metrics["labels"] == ["low", "high"]
    more = write_tones(tmp_path / "more", ("middle",), 16)
    grown = replace(CONFIG, train=replace(CONFIG.train, learning_rate=1e-2))
    result = adapt(more, workspace=tmp_path / "w", config=grown)
    assert result.metrics["labels"] == ["low", "high", "middle"]


def test_waves_as_transformers_prepares_them(tmp_path):
    """Padded with zeros after normalising; with a mask only where the model was trained with one."""
    samples = sounds(tmp_path / "data")
    for family in ("wav2vec2", "wav2vec2-masked"):
        folder = kit.AUDIO[family](tmp_path / family)
        model = opened(folder, tmp_path / f"{family} base", samples)
        masked = family == "wav2vec2-masked"
        assert model.encoder.input_names == ("input_values", "attention_mask")[: 1 + masked]
        assert set(model.dynamic_axes.values()) == {("batch", "samples")}
        extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
        inputs = model.encoder.encode(samples)
        found = inputs.batch(np.array([0, 5]))
        waves = [read_clip(Path(samples.inputs[i]), 60).samples for i in (0, 5)]
        width = found["input_values"].shape[1]
        assert width == (max(len(wave) for wave in waves) if masked else model_length(model))
        for row, wave in enumerate(waves):
            theirs = extractor(wave, sampling_rate=RATE, return_tensors="pt")["input_values"][0]
            size = min(len(theirs), width)
            values = found["input_values"][row]
            if len(theirs) <= width:  # else its mean is that of the part that is used
                torch.testing.assert_close(values[:size], theirs, rtol=1e-4, atol=1e-4)
            assert not values[size:].any()
            if masked:
                assert found["attention_mask"][row].tolist() == [1] * size + [0] * (width - size)
        assert len(set(inputs.lengths().tolist())) > 1 if masked else set(inputs.lengths()) == {1}


def test_features_do_not_depend_on_the_rest_of_the_batch(tmp_path):
    samples = sounds(tmp_path / "data")
    for family in kit.AUDIO:
        model = opened(kit.AUDIO[family](tmp_path / family), tmp_path / f"{family} base", samples)
        inputs = model.encoder.encode(samples)
        with torch.no_grad():
            together = model.backbone(**inputs.batch(np.arange(6)))
            alone = torch.cat([model.backbone(**inputs.batch(np.array([i]))) for i in range(6)])
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_spectrograms_as_transformers_prepares_them(tmp_path):
    samples = sounds(tmp_path / "data")
    folder = kit.ast(tmp_path / "ast")
    model = opened(folder, tmp_path / "base", samples)
    assert isinstance(model.encoder, AudioEncoder)
    assert model.encoder.rate == 16_000
    assert model.encoder.longest == 400 + 31 * 160
    wave = model.encoder.encode(samples)
    found = wave.batch(np.array([2]))["input_values"]
    assert found.shape == (1, 32, 32)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    clip = wave.to_arrays(np.array([2]))["waves"][0].astype(np.float32) / 32_768
    theirs = extractor(clip, sampling_rate=16_000, return_tensors="pt")["input_values"]
    torch.testing.assert_close(found, theirs)
    assert "0.335 seconds" in model.notes[-1]


def test_the_anchor_file_holds_what_the_model_was_given(tmp_path):
    samples = sounds(tmp_path / "data")
    models: dict[str, LoadedModel] = {
        family: opened(build(tmp_path / family), tmp_path / f"{family} base", samples)
        for family, build in kit.AUDIO.items()
    }
    models["auto"] = opened(Path("auto"), tmp_path / "auto base", samples)
    for model in models.values():
        inputs = model.encoder.encode(samples)
        chosen = np.array([4, 1, 3])
        arrays = inputs.to_arrays(chosen)
        assert arrays["waves"].dtype == np.int16
        again = model.encoder.from_arrays(arrays).batch(np.arange(3))
        for name, values in inputs.batch(chosen).items():
            assert torch.equal(values, again[name])


def test_resampling_keeps_the_sound(tmp_path):
    """A tone at 44.1 kHz on two channels is the tone at 8 kHz."""
    time = np.arange(44_100) / 44_100
    loud = np.round(10_000 * np.sin(2 * np.pi * 440 * time)).astype(np.int16)
    write_wav(tmp_path / "data" / "a" / "x.wav", np.stack([loud, loud], 1), 44_100)
    samples = read_dataset(tmp_path / "data").train
    model = opened(kit.wav2vec2(tmp_path / "tiny"), tmp_path / "base", samples, clip_seconds=0.5)
    assert isinstance(model.encoder, AudioEncoder)
    found = model.encoder.encode(samples).to_arrays(np.array([0]))["waves"][0]
    expected = 10_000 * np.sin(2 * np.pi * 440 * np.arange(RATE // 2) / RATE)
    assert len(found) == RATE // 2
    np.testing.assert_allclose(found[100:-100], expected[100:-100], atol=60)


def test_floats_beyond_full_scale_and_tiny_clips(tmp_path):
    soundfile = pytest.importorskip("soundfile")
    (tmp_path / "data" / "a").mkdir(parents=True)
    loud = 9.0 * tone("low", 0.3, 0)[: RATE // 4] / 32_768
    soundfile.write(tmp_path / "data" / "a" / "0.wav", loud, RATE, subtype="FLOAT")
    write_wav(tmp_path / "data" / "a" / "1.wav", np.array([5], np.int16))
    write_wav(tmp_path / "data" / "a" / "2.wav", np.zeros(RATE // 4, np.int16))
    samples = read_dataset(tmp_path / "data").train
    models = {
        family: opened(build(tmp_path / family), tmp_path / f"{family} base", samples)
        for family, build in kit.AUDIO.items()
    }
    models["auto"] = opened(Path("auto"), tmp_path / "auto base", samples)
    for model in models.values():
        inputs = model.encoder.encode(samples)
        with torch.no_grad():
            assert torch.isfinite(model.backbone(**inputs.batch(np.arange(3)))).all()
    waves = models["wav2vec2"].encoder.encode(samples).to_arrays(np.array([0]))["waves"][0]
    assert np.abs(waves.astype(int)).max() >= 32_767
    np.testing.assert_allclose(waves / 32_768, loud / np.abs(loud).max(), atol=1e-4)


def test_log_mel_shows_where_the_energy_is():
    time = np.arange(RATE) / RATE
    for hertz in (300.0, 1000.0, 2500.0):
        wave = (0.3 * np.sin(2 * np.pi * hertz * time)).astype(np.float32)
        found = log_mel(wave, RATE, 40)
        assert found.shape == (98, 40)
        mel = [2595 * np.log10(1 + f / 700) for f in (20.0, hertz, RATE / 2)]
        band = (mel[1] - mel[0]) / (mel[2] - mel[0]) * 41 - 1
        assert abs(found.mean(0).argmax() - band) <= 1
        assert np.array_equal(found, log_mel(wave, RATE, 40))
        top = found[0].argmax()
        louder = log_mel(2 * wave, RATE, 40)[:, top] - found[:, top]
        np.testing.assert_allclose(louder, 2 * np.log(2), atol=0.02)


def test_clip_length_of_the_built_in_network(tmp_path):
    data = write_tones(tmp_path / "data", ("low", "high"), 20, seconds=0.5)
    write_wav(data / "low" / "long.wav", tone("low", 9, 0))
    samples = read_dataset(data).train
    model = opened(Path("auto"), tmp_path / "base", samples)
    assert model.source.options["longest"] == round(0.6 * RATE)
    assert "The first 0.6 seconds of each recording" in model.notes[1]
    given = opened(Path("auto"), tmp_path / "given", samples, clip_seconds=0.25)
    assert given.source.options["frames"] == 23
    with pytest.raises(UsageError, match="--clip-seconds"):
        ModelOptions(clip_seconds=0.0)


def test_other_data_is_refused(tmp_path):
    samples = sounds(tmp_path / "data")
    model = opened(kit.wav2vec2(tmp_path / "tiny"), tmp_path / "base", samples)
    text = Samples("text", "classification", ["a"], np.array(["b"]))
    with pytest.raises(DataError, match="expected recordings, as in the first session"):
        model.encoder.encode(text)
    with pytest.raises(ModelError, match="expected a model that takes input_ids"):
        opened(kit.wav2vec2(tmp_path / "other"), tmp_path / "b2", text)
    with pytest.raises(ModelError, match="expected a model that takes input_values"):
        opened(kit.llama(tmp_path / "llama"), tmp_path / "b3", samples)
    with pytest.raises(ModelError, match=r"expected images, tables or arrays.*found audio data"):
        opened(Path("tests.tiny:anything"), tmp_path / "b4", samples)


def test_no_target_is_the_positional_convolution(tmp_path):
    model = opened(kit.wav2vec2(tmp_path / "tiny"), tmp_path / "base", sounds(tmp_path / "data"))
    names = {target.name for target in find_targets(model.backbone.model, ("auto",))}
    assert names
    assert not [name for name in names if "conv" in name]
