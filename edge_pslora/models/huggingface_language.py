"""Causal language models from a local Hugging Face folder, to go on learning a language from texts.

The whole model is the backbone: its features are the logits of the next token [N, T, V], and no
head is put on top. A language model whose texts have labels is an encoder: see huggingface.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edge_pslora.data.types import Samples
from edge_pslora.errors import ModelError
from edge_pslora.models.backbones import TransformersBackbone
from edge_pslora.models.encode_text import TextEncoder, Tokens
from edge_pslora.models.hf_names import require_complete, trace_names, untraced
from edge_pslora.models.hf_parts import (
    LANGUAGE,
    is_language_model,
    load_module,
    open_tokenizer,
    position_limit,
)
from edge_pslora.models.options import ModelOptions
from edge_pslora.models.probe import probe_indices, run_once
from edge_pslora.models.token_checks import check_tokens
from edge_pslora.models.types import LoadedModel, ModelSource
from edge_pslora.models.weights import float_dtype, freeze, read_weights
from edge_pslora.models.weights_header import WEIGHTS_FILE

POOLING = "language"


def import_language(
    folder: Path,
    config: dict[str, Any],
    tensors: dict[str, torch.Tensor],
    samples: Samples,
    options: ModelOptions,
    base_dir: Path,
) -> ModelSource:
    """Tries the model of base_dir, a copy of `folder`, on two texts.

    config: its config.json. tensors: of its weights file.

    Raises:
        ModelError: no causal language model, or one that does not fit its file or its tokenizer.
    """
    where = str(folder)
    if samples.modality != "text" or not is_language_model(config):
        names = ", ".join(map(str, config.get("architectures") or ["no architecture"]))
        raise ModelError(
            where,
            expected=f"a causal language model (...{' or ...'.join(LANGUAGE)}) and texts",
            found=f"{names} and {samples.modality} data",
            remedy="give such a model, or data with labels for this one",
        )
    model = _open(base_dir, where)
    names_in_file = trace_names(model, tensors, where)
    require_complete(model, names_in_file, where)
    chosen: dict[str, Any] = {"pooling": POOLING, "head_module": None, "head_labels": None}
    limit = position_limit(model) or getattr(model.config, "max_position_embeddings", None)
    chosen["max_length"] = min(options.max_length, int(limit or options.max_length))
    encoder, end = _encoder(base_dir, model, int(chosen["max_length"]), where)
    chosen["notes"] = [_note(int(chosen["max_length"]), end)]
    indices = probe_indices(samples)
    inputs = encoder.encode(samples.take(indices)).batch(np.arange(len(indices)))
    output = run_once(TransformersBackbone(model, POOLING), inputs, where)
    chosen["feature_size"] = _check_logits(output, tuple(inputs["input_ids"].shape), where)
    chosen["file_dtype"] = float_dtype(tensors)
    chosen["file_names"] = {
        name: names_in_file[name] for name in model.state_dict() if name in names_in_file
    }
    return ModelSource("huggingface", "text", folder.resolve().name, chosen)


def load_language(source: ModelSource, base_dir: Path) -> LoadedModel:
    """The model of a workspace's base folder, exactly as `import_language` decided.

    Raises:
        ModelError: the base folder is damaged, or this version of transformers no longer loads it.
    """
    where, chosen = str(base_dir), source.options
    tensors = read_weights(base_dir / WEIGHTS_FILE)
    model = _open(base_dir, where)
    names: dict[str, str] = chosen["file_names"]
    missing = untraced(model, names) or [n for n in names.values() if n not in tensors]
    if missing:
        raise ModelError(
            f"{where}/{WEIGHTS_FILE}",
            expected=f"every weight of {type(model).__name__}",
            found=f"{missing[0]} missing",
            remedy="use the transformers version of the first session, or restore base/",
        )
    encoder, _ = _encoder(base_dir, model, int(chosen["max_length"]), where)
    backbone = TransformersBackbone(model, POOLING)
    freeze(backbone)
    return LoadedModel(
        backbone=backbone,
        encoder=encoder,
        feature_size=int(chosen["feature_size"]),
        source=source,
        dynamic_axes=dict.fromkeys(encoder.input_names, ("batch", "sequence")),
        file_names=dict(names),
        file_dtype=chosen["file_dtype"],
        notes=tuple(chosen["notes"]),
    )


def _open(folder: Path, where: str) -> Any:
    return freeze(load_module(folder, modality="text", headed=False, where=where, language=True))


@dataclass(frozen=True)
class _Tokenize:
    """Texts cut to max_length tokens; the token `end` behind each that is not cut, if there is one."""

    tokenizer: Any
    max_length: int
    end: int | None

    def __call__(self, texts: Sequence[str]) -> Tokens:
        encoded = self.tokenizer(
            list(texts),
            truncation=True,
            max_length=self.max_length,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        return Tokens([self._ended(ids) for ids in encoded["input_ids"]])

    def _ended(self, ids: list[int]) -> list[int]:
        # a text that was cut does not end there
        if self.end is None or len(ids) >= self.max_length or ids[-1:] == [self.end]:
            return ids
        return [*ids, self.end]


def _encoder(
    folder: Path, model: nn.Module, max_length: int, where: str
) -> tuple[TextEncoder, int | None]:
    """The tokenizer as an encoder, and the token that ends a text."""
    tokenizer = open_tokenizer(folder, where)
    pad_id = check_tokens(tokenizer, model, where)
    end = None if tokenizer.eos_token_id is None else int(tokenizer.eos_token_id)
    return TextEncoder(_Tokenize(tokenizer, max_length, end), pad_id), end


def _note(max_length: int, end: int | None) -> str:
    cut = f"Texts are cut to {max_length} tokens (--max-length)"
    return (
        f"{cut}; the tokenizer's end token is put behind shorter ones."
        if end is not None
        else f"{cut}."
    )


def _check_logits(logits: object, shape: tuple[int, ...], where: str) -> int:
    """The vocabulary's size V of finite float logits [N, T, V]."""
    found = "no tensor"
    if isinstance(logits, torch.Tensor):
        fits = logits.is_floating_point() and tuple(logits.shape[:2]) == shape
        if fits and logits.dim() == 3 and bool(torch.isfinite(logits).all()):
            return int(logits.shape[2])
        found = f"{logits.dtype} {list(logits.shape)}, or values that are not finite"
    raise ModelError(
        where,
        expected=f"finite logits [{', '.join(map(str, shape))}, tokens]",
        found=found,
        remedy="give a causal language model with sound weights",
    )
