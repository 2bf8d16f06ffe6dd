"""Whether a model's output head is its input embedding, by the config.json beside the weights.

Such a file holds one tensor for both. An adapter was trained on one of them: merged into the tensor
that both share, it would change the other too, and nothing would say so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_pslora.errors import AdapterError, ModelError
from edge_pslora.workspace import strict_json
from edge_pslora.workspace.tensor_header import Header, TensorSpec

CONFIG = "config.json"
_MAX_CONFIG = 1 << 24
_WITH_HEAD = re.compile(
    r".*(LMHeadModel|DoubleHeadsModel|For(CausalLM|MaskedLM|ConditionalGeneration|PreTraining))"
)
_EMBEDDINGS = re.compile(
    r"(.*\.)?(embed_tokens|wte|word_embeddings|tok_embeddings|embed_in|shared|lm_head|embed_out)"
    r"\.weight"
)


def check_not_tied(name: str, spec: TensorSpec, base: Header, folder: Path, adapter: str) -> None:
    """Refuse to change `name`, of this spec, where it is an embedding that the head shares.

    Args:
        base: the header of the model's file, in `folder`.
        adapter: the adapter that changes it, for the message.

    Raises:
        AdapterError: the tensor is tied. ModelError: config.json is not JSON.
    """
    path = folder / CONFIG
    stored = sum(other.shape == spec.shape for other in base.specs.values())
    if len(spec.shape) != 2 or stored != 1 or not path.is_file():
        return  # with two tensors of that shape, each has its own
    config = strict_json.read(path, limit=_MAX_CONFIG, error=ModelError)
    text = config.get("text_config")
    parts = [config, text] if isinstance(text, dict) else [config]
    sizes = [part.get("vocab_size") for part in parts]
    if spec.shape[0] in sizes or _EMBEDDINGS.fullmatch(name):
        reason = _why_tied(config, parts)
        if reason:
            raise AdapterError(
                f"{adapter}, {name}",
                expected="a weight of its own",
                found=f"one that the input embedding and the output head share ({path}: {reason})",
                remedy="adapt other layers, or save the base untied (tie_word_embeddings false, "
                "both tensors in the file) and train on that",
            )


def _why_tied(config: Mapping[str, Any], parts: list[dict[str, Any]]) -> str:
    """What says that the head is tied; empty if it is not, or if there is no head."""
    names = config.get("architectures")
    architectures = [str(name) for name in names] if isinstance(names, list) else []
    with_head = [name for name in architectures if _WITH_HEAD.fullmatch(name)]
    if architectures and not with_head:
        return ""
    flags = [part["tie_word_embeddings"] for part in parts if "tie_word_embeddings" in part]
    if any(flags):
        return "tie_word_embeddings"
    return f"the default of {with_head[0]}" if with_head and not flags else ""
