"""Whether a processor multiplies bf16 matrices by itself; without that bf16 would be the slower one."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

# x86-64: products of bf16 pairs, in vectors or in tiles; arm64 has one word for both
_X86 = ("avx512_bf16", "amx_bf16")
_ARM = "bf16"


def has_bf16(device: torch.device) -> bool:
    """The CPU: with AVX512-BF16, AMX or ARM's BF16 instructions, and a torch whose oneDNN uses them. No
    for other devices, where its conversions cost more launches than its products save time: on an H200
    a step takes longer in bf16 than in float32 (MiniLM, MobileNetV1; docs/ENGINE.md)."""
    if device.type != "cpu":
        return False
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if platform.machine().lower() in ("aarch64", "arm64"):
        return _ARM in _flags(Path("/proc/cpuinfo"), "features")
    known = torch.cpu.get_capabilities()
    return any(bool(known.get(name)) for name in _X86)


def _flags(cpuinfo: Path, key: str) -> frozenset[str]:
    """The words of the first line `key: ...`; empty where the system has no such file."""
    if not cpuinfo.exists():
        return frozenset()
    for line in cpuinfo.read_text(encoding="ascii", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip().lower() == key:
            return frozenset(value.split())
    return frozenset()
