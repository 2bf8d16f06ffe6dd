"""Let a language model go on with a text on a device: onnxruntime, numpy and tokenizers, no torch.

    edge-pslora export WORKSPACE EXPORT --format onnx --kv-cache
    python examples/generate_on_device.py EXPORT "the beginning of a text" [TOKENS]

The file takes the keys and values of earlier tokens and gives back those with the new ones, so that each
step computes one token. Its metadata tell their shape. The likeliest token is taken each time.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

# onnxruntime would report every session to its makers over the network: said before it is loaded
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime

Value = onnxruntime.OrtValue


def continuation(session: onnxruntime.InferenceSession, ids: list[int]) -> Iterator[int]:
    """The likeliest next token, again and again."""
    shape = json.loads(session.get_modelmeta().custom_metadata_map["pslora.kv_cache"])
    takes_positions = "position_ids" in [value.name for value in session.get_inputs()]
    kinds = [f"{n}.{kind}" for n in range(shape["layers"]) for kind in ("key", "value")]
    nothing = np.zeros((1, shape["heads"], 0, shape["head_dim"]), np.float32)
    past = [Value.ortvalue_from_numpy(nothing) for _ in kinds]
    outputs = ["logits", *(f"present.{kind}" for kind in kinds)]
    new, length = ids, 0
    while True:
        length += len(new)
        arrays = {"input_ids": [new], "attention_mask": [[1] * length]}
        if takes_positions:
            arrays["position_ids"] = [list(range(length - len(new), length))]
        feed = {
            name: Value.ortvalue_from_numpy(np.array(rows, np.int64))
            for name, rows in arrays.items()
        }
        feed |= {f"past_key_values.{kind}": value for kind, value in zip(kinds, past, strict=True)}
        logits, *past = session.run_with_ort_values(outputs, feed)  # past is not copied
        new = [int(logits.numpy()[0, -1].argmax())]
        yield new[0]


def main(export: Path, prompt: str, count: int) -> None:
    session = onnxruntime.InferenceSession(
        str(export / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    tokenizer = Tokenizer.from_file(str(export / "tokenizer.json"))
    settings = json.loads((export / "tokenizer_config.json").read_text(encoding="utf-8"))
    end = tokenizer.token_to_id(str(settings.get("eos_token")))
    new: list[int] = []
    start = time.perf_counter()
    for token in continuation(session, tokenizer.encode(prompt).ids):
        new.append(token)
        if token == end or len(new) == count:
            break
    seconds = time.perf_counter() - start
    print("tokens:", *new)
    print("text:", prompt, tokenizer.decode(new))
    print(f"tokens per second: {len(new) / seconds:.0f}")
    assert "torch" not in sys.modules


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit('usage: python examples/generate_on_device.py EXPORT "TEXT" [TOKENS]')
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]) if len(sys.argv) == 4 else 40)
