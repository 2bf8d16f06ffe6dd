"""A Hugging Face folder, described from config.json and the header of its weights; no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_pslora.errors import ModelError
from edge_pslora.inspection.facts import LayerFacts, ModelFacts
from edge_pslora.inspection.file_layers import by_transformer_names, choose, file_layers
from edge_pslora.models.hf_folder import (
    VOCABULARY_FILES,
    check_folder,
    image_settings,
)
from edge_pslora.models.options import ModelOptions
from edge_pslora.models.weights_header import WEIGHTS_FILE
from edge_pslora.workspace.tensor_header import FLOATS, TensorSpec
from edge_pslora.workspace.tensors import read_header

# Under which name a model with a head keeps the model without one, where that is not its type.
_PREFIXES = {
    **dict.fromkeys(("xlm-roberta", "camembert", "xlm-roberta-xl"), "roberta"),
    **dict.fromkeys(("deberta-v2",), "deberta"),
    **dict.fromkeys(("gpt2", "gpt_neo"), "transformer"),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma", "phi3"), "model"),
}
# Positions are counted from after the padding index (transformers: padding_idx of the embedding).
_AFTER_PADDING = frozenset(("roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "mpnet"))
# Families whose convolutions stand in the order that file_layers knows (a test compares them).
_ORDER_KNOWN = frozenset(("convnext", "convnextv2", "resnet", "mobilenet_v1", "mobilenet_v2"))
# ends of a class's name -> (what it takes, what it does)
_HEADS = (
    ("ForSequenceClassification", "text", "classification"),
    ("ForImageClassification", "image", "classification"),
    ("ForAudioClassification", "audio", "classification"),
    ("ForCausalLM", "text", "language"),
    ("LMHeadModel", "text", "language"),
)


@dataclass(frozen=True)
class _Folder:
    """What the files say. modality, task: see _HEADS; task "" is a bare encoder."""

    config: Mapping[str, Any]
    specs: Mapping[str, TensorSpec]
    architecture: str
    modality: str
    task: str

    @property
    def family(self) -> str:
        return str(self.config.get("model_type") or "unknown")


def inspect_folder(
    folder: Path, options: ModelOptions, patterns: Sequence[str], rank: int
) -> ModelFacts:
    """What `adapt --model FOLDER` would find, as far as names and shapes say it.

    Raises:
        ModelError: config or weights are missing or damaged, or --target names no layer.
    """
    config = check_folder(folder)
    weights = folder / WEIGHTS_FILE
    header = read_header(weights, error=ModelError)
    architecture = str((config.get("architectures") or ["unknown"])[0])
    modality, task = _purpose(config, architecture)
    found = _Folder(config, header.specs, architecture, modality, task)
    layers = _loaded_layers(found)
    targets = choose(layers, patterns)
    labels, head = _head(found)
    known = by_transformer_names(layers) or found.family in _ORDER_KNOWN
    return ModelFacts(
        source=str(folder),
        kind="huggingface",
        family=found.family,
        architecture=architecture,
        modality=modality,
        task=_task(found, labels),
        labels=labels,
        head=head,
        targets=targets,
        targets_certain=known or "auto" not in patterns,
        rank=rank,
        parameters=parameters(header.specs),
        dtype=main_dtype(header.specs),
        bytes=header.file_bytes,
        input_limit=_limit(found, folder, options),
        notes=_notes(found, folder),
    )


def parameters(specs: Mapping[str, TensorSpec]) -> int:
    """How many numbers the file holds, but for counters and other whole numbers."""
    total = 0
    for spec in specs.values():
        count = 1
        for size in spec.shape:
            count *= size
        total += count if spec.dtype in FLOATS else 0
    return total


def main_dtype(specs: Mapping[str, TensorSpec]) -> str:
    """The dtype of most float tensors, as safetensors writes it: F32, F16, BF16."""
    counts = Counter(spec.dtype for spec in specs.values() if spec.dtype in FLOATS)
    return counts.most_common(1)[0][0] if counts else "none"


def _purpose(config: Mapping[str, Any], architecture: str) -> tuple[str, str]:
    heard = "conv_dim" in config or "num_mel_bins" in config
    for end, modality, task in _HEADS:
        if architecture.endswith(end):
            return ("audio" if heard else modality), task
    if heard:
        return "audio", ""
    return ("text" if "vocab_size" in config else "image"), ""


def _loaded_layers(folder: _Folder) -> list[LayerFacts]:
    """The layers of what is loaded: all but the classifier, or the encoder of a file with another head."""
    channels = int(folder.config.get("num_channels") or 3)
    layers = file_layers(folder.specs, channels=channels)
    prefix = _PREFIXES.get(folder.family, folder.family.replace("-", "_")) + "."
    inside = [layer for layer in layers if layer.name.startswith(prefix)]
    if folder.task == "classification":
        size = len(_label_names(folder))
        outside = {layer.name for layer in layers} - {layer.name for layer in inside}
        return [x for x in layers if not (inside and x.name in outside and x.shape[0] == size)]
    if folder.task == "language":
        return layers
    bare = [
        LayerFacts(x.name.removeprefix(prefix), x.kind, x.weight_name, x.shape)
        for x in inside or layers
    ]
    return [x for x in bare if not (x.name.startswith("pooler.") and folder.modality == "text")]


def _label_names(folder: _Folder) -> tuple[str, ...]:
    names = folder.config.get("id2label")
    if not isinstance(names, dict) or not names:
        count = folder.config.get("num_labels", 2)
        return tuple(f"LABEL_{i}" for i in range(count if isinstance(count, int) else 2))
    return tuple(str(names.get(str(i), f"LABEL_{i}")) for i in range(len(names)))


def _head(folder: _Folder) -> tuple[tuple[str, ...], str]:
    """(labels of the classifier that comes along, what the head of a session will be)."""
    if folder.task == "language":
        return (), "its own, over the vocabulary"
    if folder.task != "classification":
        what = "the mean of the tokens" if folder.modality == "text" else "the pooled features"
        return (), f"a new one, on {what}"
    labels = _label_names(folder)
    if len(labels) == 1:
        return (), "its own for one value; a new one for labels"
    if labels == tuple(f"LABEL_{i}" for i in range(len(labels))):
        return labels, f"its own if the data's labels are 0 to {len(labels) - 1}, else a new one"
    return labels, f"its own with {len(labels)} labels; new labels are added after them"


def _task(folder: _Folder, labels: Sequence[str]) -> str:
    if folder.task == "language":
        return "language: the next token"
    if folder.task != "classification":
        return "none of its own: an encoder"
    if folder.config.get("problem_type") == "multi_label_classification":
        return f"multilabel: {len(labels)} labels"
    return f"classification: {len(labels)} labels" if labels else "regression: one value"


def _limit(folder: _Folder, path: Path, options: ModelOptions) -> int | None:
    """Tokens of a text, or the side of a picture in pixels."""
    if folder.modality == "image":
        return image_settings(path, dict(folder.config), options).size
    if folder.modality != "text":
        return None
    for name, spec in folder.specs.items():
        if name.endswith(("position_embeddings.weight", "wpe.weight")):
            used = 0
            if folder.family in _AFTER_PADDING:
                used = int(folder.config.get("pad_token_id") or 0) + 1
            return min(options.max_length, spec.shape[0] - used)
    return options.max_length


def _notes(folder: _Folder, path: Path) -> tuple[str, ...]:
    notes = []
    if folder.modality == "text" and not any((path / n).is_file() for n in VOCABULARY_FILES):
        notes.append("No tokenizer beside the model (tokenizer.json): adapt will refuse it.")
    if folder.config.get("tie_word_embeddings") and folder.task == "language":
        notes.append("Input embedding and output layer are one weight; neither is adapted.")
    if folder.config.get("auto_map"):
        notes.append("It asks for code of its own, which is never run.")
    return tuple(notes)
