"""Audio models of a Hugging Face folder: how sound is prepared for Wav2Vec2 and its kind, and AST."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edge_pslora.data.types import Samples
from edge_pslora.errors import ModelError
from edge_pslora.models.audio_forms import Waves
from edge_pslora.models.encode_audio import (
    LONGEST_SECONDS,
    VALUES,
    AudioEncoder,
    Wave,
    usual_length,
)
from edge_pslora.models.failures import FOREIGN_ERRORS, first_line
from edge_pslora.models.hf_folder import PROCESSOR_FILES, read_json
from edge_pslora.models.hf_parts import quiet, require_transformers
from edge_pslora.models.options import ModelOptions

SPECTROGRAM = "audio-spectrogram-transformer"  # AST's model_type
# samples: AST's frames of 25 ms every 10 ms, at the one rate that it is made for
FRAME, HOP = 400, 160


@dataclass(frozen=True)
class Spectrograms:
    """What transformers' feature extractor for AST makes: log-mel [frames, bands], one length."""

    extractor: Any
    rate: int

    @property
    def input_names(self) -> tuple[str, ...]:
        return (VALUES,)

    @property
    def ragged(self) -> bool:
        return False

    @property
    def kept(self) -> bool:
        return False  # half a megabyte each

    def __call__(self, waves: Sequence[Wave]) -> dict[str, torch.Tensor]:
        """input_values: float32 [K, frames, bands]."""
        made = self.extractor(list(waves), sampling_rate=self.rate, return_tensors="np")[VALUES]
        return {VALUES: torch.as_tensor(made, dtype=torch.float32)}


def audio_settings(
    folder: Path, model: Any, samples: Samples, options: ModelOptions
) -> dict[str, Any]:
    """How the folder's feature extractor prepares sound, as JSON values; the user's option wins.

    model: as loaded; its configuration, unlike config.json, has every value.

    Raises:
        ModelError: an extractor for another kind of model, or a damaged file.
    """
    found = next((folder / n for n in PROCESSOR_FILES if (folder / n).is_file()), None)
    raw = read_json(found) if found else {}
    raw = raw.get("feature_extractor", raw)
    config: dict[str, Any] = model.config.to_dict()
    try:
        chosen: dict[str, Any] = {"rate": int(raw.get("sampling_rate", 16_000))}
        if config.get("model_type") == SPECTROGRAM:
            frames = int(config["max_length"])
            chosen |= {"form": "spectrogram", "longest": FRAME + HOP * (frames - 1)}
            chosen["shortest"] = FRAME
            chosen["extractor"] = {
                "sampling_rate": chosen["rate"],
                "num_mel_bins": int(config["num_mel_bins"]),
                "max_length": frames,
                **{k: raw[k] for k in ("do_normalize", "mean", "std") if k in raw},
            }
        else:
            chosen |= {"form": "waves", "normalise": bool(raw.get("do_normalize", True))}
            # models with a group norm at their start were trained without a mask
            trained = config.get("feat_extract_norm") == "layer"
            chosen["with_mask"] = bool(raw.get("return_attention_mask", trained))
            chosen["shortest"] = _receptive_field(config)
            seconds = LONGEST_SECONDS
            if not chosen["with_mask"]:
                seconds = min(usual_length(samples)[0], seconds)
            chosen["longest"] = max(round(seconds * chosen["rate"]), chosen["shortest"])
        if not 1_000 <= chosen["rate"] <= 768_000:
            raise ValueError(f"{chosen['rate']} samples per second")
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            str(found or folder),
            expected="a feature extractor of Wav2Vec2 and its kind, or of AST",
            found=str(error),
            remedy="save it there again: feature_extractor.save_pretrained(folder)",
        ) from error
    if options.clip_seconds is not None:
        wanted = max(round(options.clip_seconds * chosen["rate"]), chosen["shortest"])
        chosen["longest"] = min(wanted, chosen["longest"]) if "extractor" in chosen else wanted
    return chosen


def audio_note(chosen: dict[str, Any]) -> str:
    """What of the recordings is used, in one sentence."""
    seconds = chosen["longest"] / chosen["rate"]
    return (
        f"The first {seconds:g} seconds of each recording are used, at {chosen['rate']} Hz "
        "(--clip-seconds)."
    )


def load_audio_encoder(chosen: dict[str, Any], where: str) -> AudioEncoder:
    """The encoder that `audio_settings` described.

    Raises:
        ModelError: this version of transformers has no such feature extractor.
    """
    rate, longest, shortest = (int(chosen[name]) for name in ("rate", "longest", "shortest"))
    if chosen["form"] == "waves":
        form = Waves(bool(chosen["normalise"]), bool(chosen["with_mask"]), longest)
        return AudioEncoder(form, rate, longest, shortest)
    transformers = require_transformers(where)
    try:
        with quiet(transformers):
            extractor = transformers.ASTFeatureExtractor(**chosen["extractor"])
    except FOREIGN_ERRORS as error:
        raise ModelError(
            where,
            expected="the feature extractor of AST",
            found=first_line(error),
            remedy="repair preprocessor_config.json, or use a version of constraints.txt",
        ) from error
    return AudioEncoder(Spectrograms(extractor, rate), rate, longest, shortest)


def audio_axes(chosen: dict[str, Any]) -> tuple[str, ...]:
    """The free axes of the model's inputs."""
    return ("batch", "samples") if chosen["form"] == "waves" else ("batch",)


def audio_pooling(model: nn.Module, chosen: dict[str, Any]) -> str:
    """frames_mean where a mask says which frames are padding; AST's own token; else mean."""
    if chosen["form"] == "spectrogram":
        return "pooler"
    masked = chosen["with_mask"] and hasattr(model, "_get_feature_vector_attention_mask")
    return "frames_mean" if masked else "mean"


def _receptive_field(config: dict[str, Any]) -> int:
    """Samples that the convolutions at the start of the model need for one frame."""
    size = 1
    kernels, strides = config["conv_kernel"], config["conv_stride"]
    for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
        size = (size - 1) * int(stride) + int(kernel)
    return size
