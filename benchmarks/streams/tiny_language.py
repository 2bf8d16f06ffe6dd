"""A small language model made here, news learned in a minute: no pretrained one is at hand offline."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

VOCABULARY = 2000
LENGTH = 64  # tokens of a training sequence
BATCH = 32
END = "<|end|>"
SIZES = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 384,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}


def make_model(
    folder: Path, texts: Sequence[str], steps: int, say: Callable[[str], None] = print
) -> Path:
    """A Llama of two layers and its byte-level BPE tokenizer, trained on the texts, as a Hugging
    Face folder. The same texts and steps give the same weights (with the same threads)."""
    import torch
    import transformers

    start = time.monotonic()
    tokenizer = _tokenizer(texts)
    end = tokenizer.convert_tokens_to_ids(END)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), pad_token_id=end, bos_token_id=end, eos_token_id=end, **SIZES
    )
    model = transformers.LlamaForCausalLM(config)
    ids = [i for text in texts for i in [*tokenizer(text)["input_ids"], end]]
    rows = torch.tensor(ids[: len(ids) // LENGTH * LENGTH]).reshape(-1, LENGTH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    loss = torch.tensor(float("nan"))
    for batch in _batches(rows, steps):
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    perplexity = float(loss.detach().exp())
    say(
        f"base: {model.num_parameters():,} parameters, {steps} steps on {len(texts)} texts, "
        f"{time.monotonic() - start:.0f} s, perplexity of the last batch {perplexity:.1f}"
    )
    return folder


def _tokenizer(texts: Sequence[str]) -> Any:
    import tokenizers
    import transformers

    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        tokenizers.trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=[END],
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=END, bos_token=END, pad_token=END
    )


def _batches(rows: Any, steps: int) -> Iterator[Any]:
    """int64 [BATCH, LENGTH] each, all rows in a new order once they are used up."""
    import torch

    generator = torch.Generator().manual_seed(0)
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        if len(order) < BATCH:
            order = torch.cat([order, torch.randperm(len(rows), generator=generator)])
        yield rows[order[:BATCH]]
        order = order[BATCH:]
