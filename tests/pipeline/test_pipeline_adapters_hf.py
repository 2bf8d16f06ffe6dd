"""PEFT adapters of a classifier for an encoder saved alone; weights in shards from session to session."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig as PeftConfig
from peft import TaskType, get_peft_model
from safetensors.torch import load_file

from edge_pslora import AdaptConfig, GateConfig, TrainConfig, adapt
from edge_pslora.data.options import ReadOptions
from edge_pslora.errors import AdapterError, WorkspaceError
from tests.pipeline import hf_kit
from tests.pipeline import pipeline_kit as kit

pytestmark = pytest.mark.usefixtures("kept_graphs")  # it is not about tracing

transformers = pytest.importorskip("transformers")
CONFIG = AdaptConfig(train=TrainConfig(epochs=0, max_length=16), gate=GateConfig(force=True))
TOPICS = ("sport", "food")


@pytest.mark.filterwarnings("ignore")  # transformers says that the classifier is new
def test_an_adapter_of_the_classifier_around_an_encoder(tmp_path: Path) -> None:
    base = hf_kit.bert_folder(tmp_path / "bert", layers=1)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    config = PeftConfig(r=4, target_modules=["query", "value"])
    peft = get_peft_model(theirs, config)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    peft.save_pretrained(str(tmp_path / "lora"), save_embedding_layers=False)
    data = kit.write_jsonl(tmp_path / "texts.jsonl", TOPICS)
    result = adapt(
        data,
        model=str(base),
        workspace=tmp_path / "w",
        adapters=[tmp_path / "lora"],
        config=CONFIG,
    )
    assert result.metrics["tasks"] == ["lora", "texts"]
    found = load_file(result.folder / "model.safetensors")
    wanted = peft.merge_and_unload().state_dict()
    changed = 0
    for name, tensor in load_file(base / "model.safetensors").items():
        if name.startswith("pooler."):
            continue
        assert float((found[name] - wanted[f"bert.{name}"]).abs().max()) <= 1e-6, name
        changed += not torch.equal(found[name], tensor)
    assert changed == 2  # query and value


@pytest.mark.filterwarnings("ignore")
def test_peft_s_own_classifier_is_refused_by_name(tmp_path: Path) -> None:
    base = hf_kit.bert_folder(tmp_path / "bert", layers=1)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    config = PeftConfig(r=4, target_modules=["query"], task_type=TaskType.SEQ_CLS)
    get_peft_model(theirs, config).save_pretrained(
        str(tmp_path / "lora"), save_embedding_layers=False
    )
    data = kit.write_jsonl(tmp_path / "texts.jsonl", TOPICS)
    with pytest.raises(AdapterError, match=r"classifier\.bias.*merge_and_unload"):
        adapt(data, model=str(base), workspace=tmp_path / "w", adapters=[tmp_path / "lora"])
    assert not (tmp_path / "w" / "workspace.json").exists()


def test_a_folder_in_shards_is_known_again(tmp_path: Path) -> None:
    base = hf_kit.bert_folder(tmp_path / "bert", layers=1)
    model = transformers.BertModel.from_pretrained(base)
    (base / "model.safetensors").unlink()
    model.save_pretrained(base, max_shard_size="10KB")
    data = kit.write_jsonl(tmp_path / "texts.jsonl", TOPICS)
    again = ReadOptions(keep_duplicates=True)
    for number in (1, 2):
        result = adapt(data, model=str(base), workspace=tmp_path / "w", config=CONFIG, read=again)
        assert result.generation == number
    shard = min(base.glob("model-*.safetensors"))
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(WorkspaceError, match="the model it was made for"):
        adapt(data, model=str(base), workspace=tmp_path / "w", config=CONFIG)
