"""What transformers makes of a folder: module and tokenizer, offline, without remote code."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edge_pslora.data.silence import silent_stderr
from edge_pslora.errors import ModelError
from edge_pslora.models.encode_text import TYPES, TextEncoder, Tokens
from edge_pslora.models.failures import FOREIGN_ERRORS, RootlessErrors, first_line
from edge_pslora.models.hf_folder import VOCABULARY_FILES
from edge_pslora.models.token_checks import check_tokens
from edge_pslora.models.weights_header import WEIGHTS_FILE

# Both export to ONNX by dynamo with a dynamic batch and sequence (tried with BERT, RoBERTa,
# DistilBERT, ViT); sdpa trains faster. Families without it get the fallback.
ATTENTION = "sdpa"
ATTENTION_FALLBACK = "eager"

_FREE_NUMBERS = 1 << 22  # that a model may have beside those of its file: a head, a pooler

# modality -> how the names of classification models end, and what loads them
HEADED: dict[str, tuple[tuple[str, ...], str]] = {
    "text": (("ForSequenceClassification",), "AutoModelForSequenceClassification"),
    "image": (("ForImageClassification",), "AutoModelForImageClassification"),
    # the older audio models call it as the text models do
    "audio": (
        ("ForAudioClassification", "ForSequenceClassification"),
        "AutoModelForAudioClassification",
    ),
}
LANGUAGE = ("ForCausalLM", "LMHeadModel")
INPUTS = {"text": "input_ids", "image": "pixel_values", "audio": "input_values"}


def require_transformers(where: str) -> Any:
    """The transformers package. Raises ModelError: it is not installed."""
    try:
        import transformers
    except ImportError as error:
        raise ModelError(
            where,
            expected="the transformers package, to load a Hugging Face folder",
            found="it is not installed",
            remedy="run: pip install 'edge-pslora[transformers]'",
        ) from error
    return transformers


def has_head(config: dict[str, Any], modality: str) -> bool:
    """Whether config.json names a classification model for this kind of data."""
    names = config.get("architectures") or []
    return any(str(name).endswith(HEADED[modality][0]) for name in names)


def is_language_model(config: dict[str, Any]) -> bool:
    """Whether config.json names a causal language model."""
    names = config.get("architectures") or []
    return any(str(name).endswith(LANGUAGE) for name in names)


def load_module(
    folder: Path, *, modality: str, headed: bool, where: str, language: bool = False
) -> nn.Module:
    """The folder's model in float32: with its classifier (headed), with its next-token head
    (language), or the bare encoder.

    Raises:
        ModelError: transformers cannot load it, or it takes another kind of input.
    """
    transformers = require_transformers(where)
    name = HEADED[modality][1] if headed else "AutoModelForCausalLM" if language else "AutoModel"
    auto = getattr(transformers, name)
    try:
        with quiet(transformers), RootlessErrors():
            config = transformers.AutoConfig.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            config.return_dict = True
            config.dtype = torch.float32  # half-precision files are raised to it, for the maths
            _require_size(auto, config, folder, where)
            model, report = _with_attention(auto, folder, config)
    except FOREIGN_ERRORS as error:
        raise ModelError(
            where,
            expected="a model that transformers loads offline and without remote code",
            found=first_line(error),
            remedy="give a complete folder of a model that transformers knows by itself",
        ) from error
    _require_shapes(report, model, where)
    wanted = INPUTS[modality]
    if model.main_input_name != wanted:
        raise ModelError(
            where,
            expected=f"a model that takes {wanted}, for {modality} data",
            found=f"{type(model).__name__} takes {model.main_input_name}",
            remedy="give a model for this kind of data",
        )
    module: nn.Module = model.float()
    return module


def _require_size(auto: Any, config: Any, folder: Path, where: str) -> None:
    """The model of this configuration is about as large as the file: built without memory first."""
    with torch.device("meta"):
        numbers = sum(p.numel() for p in auto.from_config(config).state_dict().values())
    there = (folder / WEIGHTS_FILE).stat().st_size
    if numbers > 4 * there + _FREE_NUMBERS:
        raise ModelError(
            where,
            expected=f"a config.json for weights of {there} bytes",
            found=f"one for {numbers} numbers",
            remedy="give the config.json and the weights of one model",
        )


def _require_shapes(report: dict[str, Any], model: nn.Module, where: str) -> None:
    """What transformers filled with random numbers because the file's tensor has another shape."""
    wrong = sorted(report["mismatched_keys"])
    if wrong:
        name, found, expected = wrong[0]
        more = f" and {len(wrong) - 1} more like it" if len(wrong) > 1 else ""
        raise ModelError(
            f"{where}/{WEIGHTS_FILE}, {name}",
            expected=f"shape {list(expected)}, as config.json of {type(model).__name__} says",
            found=f"{list(found)}{more}",
            remedy="give the config.json and the weights of one model",
        )


def _with_attention(auto: Any, folder: Path, config: Any) -> tuple[Any, dict[str, Any]]:
    settings = {
        # or transformers says only that there is some report above; _require_shapes says what
        "ignore_mismatched_sizes": True,
        "output_loading_info": True,
        "config": config,
        "local_files_only": True,
        "use_safetensors": True,
        "trust_remote_code": False,
    }
    try:
        loaded: tuple[Any, dict[str, Any]] = auto.from_pretrained(
            folder, attn_implementation=ATTENTION, **settings
        )
    except ValueError as error:
        if "attention" not in str(error):
            raise
        loaded = auto.from_pretrained(folder, attn_implementation=ATTENTION_FALLBACK, **settings)
    return loaded


def load_tokenizer(folder: Path, model: nn.Module, max_length: int, where: str) -> TextEncoder:
    """The folder's tokenizer as an encoder that cuts texts to max_length tokens.

    Raises:
        ModelError: there is none, it does not load, or it is not this model's.
    """
    tokenizer = open_tokenizer(folder, where)
    with_types = TYPES in tokenizer.model_input_names and _takes(model, TYPES)
    pad_id = check_tokens(tokenizer, model, where)

    def tokenize(texts: Sequence[str]) -> Tokens:
        try:
            with silent_stderr(), RootlessErrors():
                encoded = tokenizer(
                    list(texts),
                    truncation=True,
                    max_length=max_length,
                    padding=False,
                    return_attention_mask=False,
                    return_token_type_ids=with_types,
                )
        except FOREIGN_ERRORS as error:
            raise ModelError(
                where,
                expected="a tokenizer that takes any text",
                found=first_line(error),
                remedy="give the tokenizer.json that belongs to the model",
            ) from error
        return Tokens(encoded["input_ids"], encoded[TYPES] if with_types else None)

    return TextEncoder(tokenize, pad_id, with_types)


def open_tokenizer(folder: Path, where: str) -> Any:
    """The folder's tokenizer. Raises ModelError: there is none, or it does not load."""
    transformers = require_transformers(where)
    try:
        # transformers would make up an empty vocabulary
        if not any((folder / name).is_file() for name in VOCABULARY_FILES):
            raise FileNotFoundError("no vocabulary")
        with quiet(transformers), silent_stderr(), RootlessErrors():
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            tokenizer(["a"])
    except FOREIGN_ERRORS as error:
        raise ModelError(
            where,
            expected="a tokenizer beside the model (tokenizer.json)",
            found=first_line(error),
            remedy="save it there: tokenizer.save_pretrained(folder)",
        ) from error
    return tokenizer


def position_limit(model: nn.Module) -> int | None:
    """How many tokens the model's learned positions reach; None where it has none."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.endswith(("position_embeddings", "wpe")):
            # RoBERTa counts positions from after the padding index
            used = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - used
    return None


def drop_pooler(model: nn.Module) -> None:
    """Removes a pooler that the features do not use: an adapter on it would get no gradient."""
    if "add_pooling_layer" in inspect.signature(type(model).__init__).parameters:
        setattr(model, "pooler", None)  # noqa: B010  (typed as a Module, None is allowed)


def _takes(model: nn.Module, name: str) -> bool:
    return name in inspect.signature(model.forward).parameters


@contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """No progress bars or load reports of transformers inside; both as before afterwards."""
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
