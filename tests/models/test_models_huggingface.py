"""Hugging Face folders: features, heads, names of tensors, refusals."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save

from edge_pslora.data.types import Samples
from edge_pslora.errors import ModelError
from edge_pslora.models.load import ModelOptions, import_base, load_model
from edge_pslora.models.types import LoadedModel

transformers = pytest.importorskip("transformers")

Build = Callable[..., Path]
ALL = np.arange(4, dtype=np.int64)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a model is loaded from the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def adopt(
    folder: Path, samples: Samples, tmp_path: Path, options: ModelOptions | None = None
) -> LoadedModel:
    """The model as a later session sees it: only the base folder and the source, through JSON."""
    base = tmp_path / "base"
    base.mkdir()
    source = import_base(str(folder), None, samples, options or ModelOptions(), base)
    assert json.loads(json.dumps(source.options)) == source.options
    return load_model(source, base)


def features(model: LoadedModel, samples: Samples) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model.backbone(**model.encoder.encode(samples).batch(ALL))
    return result


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_text_heads_are_cut_and_kept(
    kind: str, hf_folder: Build, texts: Samples, tmp_path: Path
) -> None:
    folder = hf_folder(kind, "ForSequenceClassification", labels=["neg", "pos", "meh"])
    model = adopt(folder, texts, tmp_path)
    head = model.base_head
    assert head is not None
    assert head.labels == ("neg", "pos", "meh")

    own = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    inputs = model.encoder.encode(texts).batch(ALL)
    with torch.no_grad():
        expected = own(**inputs).logits
    found = features(model, texts) @ head.weight.T + head.bias
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert f"{head.module_name}.weight" in load_file(folder / "model.safetensors")
    assert model.feature_size == head.weight.shape[1]


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_text_encoders_average_over_the_mask(
    kind: str, hf_folder: Build, texts: Samples, tmp_path: Path
) -> None:
    model = adopt(hf_folder(kind), texts, tmp_path)
    together = features(model, texts)
    encoded = model.encoder.encode(texts)
    with torch.no_grad():
        for row in range(4):  # padding must not change a text's features
            alone = model.backbone(**encoded.batch(np.array([row], np.int64)))
            torch.testing.assert_close(alone[0], together[row], rtol=1e-4, atol=1e-5)
    assert model.base_head is None
    assert together.shape == (4, model.feature_size)


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_image_heads_are_cut_and_kept(
    kind: str, hf_folder: Build, images: Samples, tmp_path: Path
) -> None:
    folder = hf_folder(kind, "ForImageClassification", labels=["a", "b"])
    model = adopt(folder, images, tmp_path, ModelOptions(image_size=32))
    own = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    head = model.base_head
    assert head is not None
    with torch.no_grad():
        expected = own(**model.encoder.encode(images).batch(ALL)).logits
    found = features(model, images) @ head.weight.T + head.bias
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_image_encoders_use_the_pooler(
    kind: str, hf_folder: Build, images: Samples, tmp_path: Path
) -> None:
    folder = hf_folder(kind)
    model = adopt(folder, images, tmp_path, ModelOptions(image_size=32))
    own = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = own(**model.encoder.encode(images).batch(ALL)).pooler_output.flatten(1)
    torch.testing.assert_close(features(model, images), expected, rtol=1e-5, atol=1e-6)


def test_an_untrained_pooler_is_not_used(hf_folder: Build, images: Samples, tmp_path: Path) -> None:
    folder = hf_folder("vit")
    tensors = load_file(folder / "model.safetensors")
    kept = {name: t for name, t in tensors.items() if not name.startswith("pooler.")}
    (folder / "model.safetensors").write_bytes(save(kept, {"format": "pt"}))
    model = adopt(folder, images, tmp_path)
    assert model.source.options["pooling"] == "mean"
    assert not any("pooler" in name for name in model.backbone.state_dict())


@pytest.mark.parametrize(
    ("kind", "suffix"),
    [
        ("bert", "Model"),
        ("bert", "ForMaskedLM"),
        ("bert", "ForSequenceClassification"),
        ("vit", "Model"),
        ("vit", "ForImageClassification"),
        ("resnet", "ForImageClassification"),
    ],
)
def test_every_tensor_is_traced_to_the_file(
    kind: str, suffix: str, hf_folder: Build, texts: Samples, images: Samples, tmp_path: Path
) -> None:
    """The merged model is written under the file's names; transformers must load it back."""
    folder = hf_folder(kind, suffix)
    samples = texts if kind == "bert" else images
    model = adopt(folder, samples, tmp_path, ModelOptions(image_size=32))
    state = model.backbone.model.state_dict()
    tensors = load_file(folder / "model.safetensors")
    assert set(model.file_names) == set(state)
    assert len(set(model.file_names.values())) == len(state)
    before = features(model, samples)
    rng = torch.Generator().manual_seed(0)
    for file_name in model.file_names.values():  # every weight another one, zeros and ones too
        if tensors[file_name].is_floating_point():
            noise = torch.rand(tensors[file_name].shape, generator=rng)
            tensors[file_name] = tensors[file_name] + 0.01 * noise
    (tmp_path / "base" / "model.safetensors").write_bytes(save(tensors, {"format": "pt"}))
    again = load_model(model.source, tmp_path / "base")
    for name, tensor in again.backbone.model.state_dict().items():
        torch.testing.assert_close(tensor, tensors[model.file_names[name]], rtol=0, atol=0)
    assert not torch.equal(features(again, samples), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_raised_and_remembered(
    dtype: torch.dtype, hf_folder: Build, texts: Samples, tmp_path: Path
) -> None:
    folder = hf_folder("bert", dtype=dtype)
    model = adopt(folder, texts, tmp_path)
    assert model.file_dtype == str(dtype).removeprefix("torch.")
    assert {p.dtype for p in model.backbone.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in model.backbone.parameters())
    base = (tmp_path / "base" / "model.safetensors").read_bytes()
    assert base == (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("targets", "labels"),
    [(["0", "2"], ("0", "1", "2")), (["neg", "pos"], None), (["0", "7"], None)],
)
def test_a_nameless_head_is_kept_only_for_numbers(
    targets: list[str],
    labels: tuple[str, ...] | None,
    hf_folder: Build,
    texts: Samples,
    tmp_path: Path,
) -> None:
    folder = hf_folder("bert", "ForSequenceClassification", num_labels=3)
    samples = Samples("text", "classification", texts.inputs, np.array(targets * 2))
    head = adopt(folder, samples, tmp_path).base_head
    assert (None if head is None else head.labels) == labels


def test_type_ids_are_given_to_models_that_take_them(
    hf_folder: Build, texts: Samples, tmp_path: Path
) -> None:
    model = adopt(hf_folder("bert"), texts, tmp_path)
    assert model.encoder.input_names == ("input_ids", "attention_mask", "token_type_ids")
    assert set(model.dynamic_axes) == set(model.encoder.input_names)
    assert all(axes == ("batch", "sequence") for axes in model.dynamic_axes.values())


def test_texts_are_cut_to_what_the_positions_reach(hf_folder: Build, tmp_path: Path) -> None:
    long = Samples("text", "classification", ["good " * 100, "bad"], np.array(["a", "b"]))
    model = adopt(hf_folder("roberta"), long, tmp_path)
    assert model.encoder.encode(long).lengths().max() == 24 - 1  # after the padding position 0


def test_the_processor_file_is_followed(hf_folder: Build, images: Samples, tmp_path: Path) -> None:
    folder = hf_folder("resnet")
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "size": {"shortest_edge": 40},
                "do_center_crop": True,
                "crop_size": {"height": 32, "width": 32},
                "image_mean": [0.1, 0.2, 0.3],
                "image_std": [1.0, 2.0, 4.0],
                "rescale_factor": 2 / 255,
            }
        )
    )
    encoded = adopt(folder, images, tmp_path).encoder.encode(images)
    pixels = encoded.to_arrays(ALL)["pixel_values"]
    assert pixels.shape == (4, 3, 32, 32)
    scaled = pixels * (2 / 255) - np.array([0.1, 0.2, 0.3]).reshape(3, 1, 1)
    expected = scaled / np.array([1.0, 2.0, 4.0]).reshape(3, 1, 1)
    np.testing.assert_allclose(encoded.batch(ALL)["pixel_values"], expected, rtol=1e-5, atol=1e-6)


def refused(folder: Path, samples: Samples, tmp_path: Path, match: str) -> None:
    with pytest.raises(ModelError, match=match) as caught:
        adopt(folder, samples, tmp_path)
    assert "\n" not in str(caught.value)


def test_pickled_weights_are_refused_by_name(
    hf_folder: Build, texts: Samples, tmp_path: Path
) -> None:
    folder = hf_folder("bert")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(folder, texts, tmp_path, r"pytorch_model\.bin.*pickle")


def test_a_damaged_folder_is_named(hf_folder: Build, texts: Samples, tmp_path: Path) -> None:
    folder = hf_folder("bert")
    (folder / "config.json").write_text("{")
    refused(folder, texts, tmp_path, r"config\.json")


def test_missing_weights_are_never_made_up(
    hf_folder: Build, texts: Samples, tmp_path: Path
) -> None:
    folder = hf_folder("bert")
    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.weight"]
    (folder / "model.safetensors").write_bytes(save(tensors, {"format": "pt"}))
    refused(folder, texts, tmp_path, r"encoder\.layer\.1\.output\.dense\.weight")


def test_weights_that_are_not_finite_are_refused(
    hf_folder: Build, texts: Samples, tmp_path: Path
) -> None:
    folder = hf_folder("bert")
    tensors = load_file(folder / "model.safetensors")
    tensors["embeddings.LayerNorm.bias"][0] = float("nan")
    (folder / "model.safetensors").write_bytes(save(tensors, {"format": "pt"}))
    refused(folder, texts, tmp_path, "NaN or infinity")


def test_a_folder_without_tokenizer_is_refused(
    hf_folder: Build, texts: Samples, tmp_path: Path
) -> None:
    folder = hf_folder("bert")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    refused(folder, texts, tmp_path, "tokenizer")


def test_a_model_of_the_other_kind_is_refused(
    hf_folder: Build, texts: Samples, images: Samples, tmp_path: Path
) -> None:
    refused(hf_folder("bert"), images, tmp_path, "pixel_values")
    (tmp_path / "base").rename(tmp_path / "first")
    refused(hf_folder("vit"), texts, tmp_path, "input_ids")


def test_tables_are_refused(hf_folder: Build, tmp_path: Path) -> None:
    rows = Samples("table", "regression", np.zeros((2, 3), np.float32), np.zeros(2, np.float32))
    refused(hf_folder("bert"), rows, tmp_path, "table data")


def test_without_transformers_the_remedy_names_the_extra(
    hf_folder: Build, texts: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = hf_folder("bert")
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    refused(folder, texts, tmp_path, r"edge-pslora\[transformers\]")


def test_nothing_is_printed(
    hf_folder: Build, texts: Samples, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = hf_folder("bert", "ForMaskedLM")
    transformers.utils.logging.enable_progress_bar()
    capfd.readouterr()
    adopt(folder, texts, tmp_path)
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")
    assert transformers.utils.logging.is_progress_bar_enabled()
