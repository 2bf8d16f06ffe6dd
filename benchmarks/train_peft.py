"""The peer of `make bench-train`: PEFT's LoRA in the loop that people write in a notebook.

Shuffled batches, padded to their longest text; AdamW; a linear head trained with the adapter; dropout
off, as ours has none; samples tokenised or decoded once. Nothing here is ours but the layers' names.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import torch.nn.functional as F
from torch import nn

Inputs = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Settings:
    """As TrainConfig and LoraConfig have them."""

    epochs: int = 3
    batch_size: int = 32
    learning_rate: float = 5e-4
    max_length: int = 128
    seed: int = 0
    rank: int = 8
    alpha: int = 16
    device: str = "cpu"


@dataclass(frozen=True)
class Peer:
    """features: of a batch of samples, by their numbers. labels int64 [N]. layers: with an adapter."""

    features: Callable[[torch.Tensor], torch.Tensor]
    head: nn.Linear
    labels: torch.Tensor
    trained: list[nn.Parameter]
    samples: int
    layers: int


def open_peer(subject: Mapping[str, Any], settings: Settings) -> Peer:
    """Loads model and data, and puts an adapter on the layers that `--target auto` would choose."""
    torch.manual_seed(settings.seed)
    if settings.device != "cpu":
        torch.backends.cudnn.allow_tf32 = False  # ours has none: float32 is float32 on both sides
    load = {"text": _text, "image": _pictures}[subject["modality"]]
    model, targets, features, names, width = load(subject, settings)
    model.to(settings.device).requires_grad_(False).eval()
    lora = peft.LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=targets)
    peft.inject_adapter_in_model(lora, model)
    classes = sorted(set(names))
    labels = torch.tensor([classes.index(name) for name in names]).to(settings.device)
    head = nn.Linear(width, len(classes)).to(settings.device)
    adapted = [p for p in model.parameters() if p.requires_grad]
    return Peer(
        features, head, labels, [*adapted, *head.parameters()], len(names), len(adapted) // 2
    )


def train(peer: Peer, settings: Settings, *, bf16: bool) -> None:
    """bf16: the forward pass under autocast."""
    optimizer = torch.optim.AdamW(peer.trained, lr=settings.learning_rate)
    for _ in range(settings.epochs):
        for batch in torch.randperm(peer.samples).split(settings.batch_size):
            optimizer.zero_grad()
            with torch.autocast(torch.device(settings.device).type, torch.bfloat16, enabled=bf16):
                wanted = peer.labels[batch.to(settings.device)]
                loss = F.cross_entropy(peer.head(peer.features(batch)), wanted)
            loss.backward()
            nn.utils.clip_grad_norm_(peer.trained, 1.0)
            optimizer.step()


def _text(subject: Mapping[str, Any], settings: Settings) -> tuple[Any, ...]:
    import transformers

    folder = Path(subject["model"])
    model = transformers.AutoModel.from_pretrained(folder, local_files_only=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    lines = (Path(subject["data"]) / "train.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    tokens = tokenizer(
        [row["text"] for row in rows], truncation=True, max_length=settings.max_length
    )["input_ids"]

    def features(batch: torch.Tensor) -> torch.Tensor:
        padded = tokenizer.pad({"input_ids": [tokens[i] for i in batch]}, return_tensors="pt")
        padded = padded.to(settings.device)
        states = model(**padded).last_hidden_state
        mask = padded["attention_mask"][:, :, None].to(states.dtype)
        return (states * mask).sum(1) / mask.sum(1)

    parts = ("query", "value", "intermediate.dense", "output.dense")
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.endswith(parts) and "attention.output" not in name
    ]
    return model, found, features, [row["label"] for row in rows], model.config.hidden_size


def _pictures(subject: Mapping[str, Any], settings: Settings) -> tuple[Any, ...]:
    from PIL import Image
    from safetensors.torch import load_file

    module, _, factory = subject["model"].partition(":")
    model = getattr(importlib.import_module(module), factory)()
    model.load_state_dict(load_file(subject["weights"]), strict=False)
    side = model.image_size
    files = sorted((Path(subject["data"]) / "train").glob("*/*.jpg"))
    pixels = np.stack(
        [np.asarray(Image.open(f).convert("RGB").resize((side, side))) for f in files]
    )
    pictures = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()

    def features(batch: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = model(pictures[batch].to(settings.device).float() / 127.5 - 1)
        return states

    found = [f"conv_pw_{number}" for number in range(5, 13)]
    return model, found, features, [f.parent.name for f in files], 1024
