"""Whether a tokenizer belongs to the model it lies beside: its ids have to mean something there."""

from __future__ import annotations

from typing import Any

from torch import nn

from edge_pslora.errors import ModelError
from edge_pslora.models.failures import FOREIGN_ERRORS

_REMEDY = "give the tokenizer that this model was trained with"


def check_tokens(tokenizer: Any, model: nn.Module, where: str) -> int:
    """The id to pad with, after every id of the tokenizer was found to have an embedding.

    Raises:
        ModelError: an id beyond the embedding, or positions that are counted from another pad token.
    """
    rows = _embedding_rows(model)
    vocabulary = tokenizer.get_vocab()
    last = max(vocabulary, key=vocabulary.__getitem__, default=None)
    if last is not None and rows is not None and vocabulary[last] >= rows:
        raise ModelError(
            where,
            expected=f"a tokenizer with ids below {rows}, the rows of the model's embedding",
            found=f"the id {vocabulary[last]} of {last!r}",
            remedy=_REMEDY,
        )
    own = getattr(getattr(model, "config", None), "pad_token_id", None)
    pad = tokenizer.pad_token_id
    if pad is None:  # padding is masked: any id will do, but for those who count positions
        return own if isinstance(own, int) and 0 <= own < (rows or own + 1) else 0
    counted = _position_padding(model)
    if counted is not None and counted != pad:
        raise ModelError(
            where,
            expected=f"a tokenizer that pads with the id {counted}, from which the model counts "
            "positions",
            found=f"the id {pad} of {tokenizer.pad_token!r}",
            remedy=_REMEDY,
        )
    return int(pad)


def _embedding_rows(model: nn.Module) -> int | None:
    try:
        embedding = model.get_input_embeddings()  # type: ignore[operator]
    except FOREIGN_ERRORS:
        return None  # a model that has none says so with an error
    return embedding.num_embeddings if isinstance(embedding, nn.Embedding) else None


def _position_padding(model: nn.Module) -> int | None:
    """The pad id that learned positions are counted from, as RoBERTa and MPNet do; else None."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.endswith("position_embeddings"):
            return module.padding_idx
    return None
