"""One merge in a process of its own, which prints its peak memory: run by core_merge_files.

python -m benchmarks.core_merge_child WAY BASE OUT ADAPTER..., or WAY alone: only what it imports.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

OURS, NUMPY, SYNCED, TORCH, PEFT = "ours", "numpy", "numpy-synced", "torch", "peft"

Merge = Callable[[Path, Path, Sequence[Path]], None]  # base, out, adapters


def load(way: str) -> Merge:
    """Imports what this way of merging needs, and nothing else."""
    return {
        OURS: _ours,
        NUMPY: _numpy,
        SYNCED: _numpy_synced,
        TORCH: _torch,
        PEFT: _peft,
    }[way]()


def _ours() -> Merge:
    import edge_pslora.merge_files  # noqa: F401  (the command imports it when it runs)
    from edge_pslora.cli.main import main as command

    def merge(base: Path, out: Path, adapters: Sequence[Path]) -> None:
        arguments = ["--base", str(base), "--out", str(out)]
        code = command(["merge", *map(str, adapters), *arguments])
        if code:
            raise SystemExit(code)

    return merge


def _numpy() -> Merge:
    import ml_dtypes  # noqa: F401  (safetensors reads bfloat16 when numpy knows it)
    import numpy as np
    from safetensors.numpy import load_file, save_file  # noqa: TID251  (a plain loop has no fsync)

    def merge(base: Path, out: Path, adapters: Sequence[Path]) -> None:
        tensors = load_file(base)
        for folder in adapters:
            scaling, factors = _scaling(folder), load_file(folder / "adapter_model.safetensors")
            for name, key in _targets(factors):
                delta = scaling * (
                    factors[f"{key}.lora_B.weight"] @ factors[f"{key}.lora_A.weight"]
                )
                weight = tensors[name]
                tensors[name] = (weight.astype(np.float32) + delta).astype(weight.dtype)
        save_file(tensors, out)

    return merge


def _numpy_synced() -> Merge:
    plain = _numpy()

    def merge(base: Path, out: Path, adapters: Sequence[Path]) -> None:
        plain(base, out, adapters)
        with out.open("rb") as file:
            os.fsync(file.fileno())

    return merge


def _torch() -> Merge:
    from safetensors.torch import load_file, save_file  # noqa: TID251

    def merge(base: Path, out: Path, adapters: Sequence[Path]) -> None:
        tensors = load_file(base)
        for folder in adapters:
            scaling, factors = _scaling(folder), load_file(folder / "adapter_model.safetensors")
            for name, key in _targets(factors):
                delta = scaling * (
                    factors[f"{key}.lora_B.weight"] @ factors[f"{key}.lora_A.weight"]
                )
                weight = tensors[name]
                tensors[name] = (weight.float() + delta).to(weight.dtype)
        save_file(tensors, out)

    return merge


def _peft() -> Merge:
    from peft import PeftModel
    from transformers import AutoModel

    def merge(base: Path, out: Path, adapters: Sequence[Path]) -> None:
        model = AutoModel.from_pretrained(base.parent)
        for folder in adapters:
            model = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
        model.save_pretrained(out.parent)  # always as model.safetensors

    return merge


def _scaling(folder: Path) -> float:
    config = json.loads((folder / "adapter_config.json").read_text())
    return float(config["lora_alpha"]) / float(config["r"])


def _targets(keys: Iterable[str]) -> list[tuple[str, str]]:
    """(name in the base, key without its end) of every adapted weight."""
    ends = [key.removesuffix(".lora_A.weight") for key in keys if key.endswith(".lora_A.weight")]
    return [(f"{end.removeprefix('base_model.model.')}.weight", end) for end in ends]


def peak_bytes() -> int | None:
    """The most memory that was resident in this process, shared pages included; None: not Linux.

    Not ru_maxrss: a child starts with its parent's.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None


def main(arguments: Sequence[str]) -> None:
    way, *rest = arguments
    merge = load(way)
    if rest:
        base, out, *adapters = map(Path, rest)
        merge(base, out, adapters)
    print(json.dumps({"peak_bytes": peak_bytes()}))


if __name__ == "__main__":
    main(sys.argv[1:])
