"""What a device does with the exported file: onnxruntime and numpy in a process that has no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
CHILD = Path(__file__).with_name("torch_free_child.py")
ABSOLUTE, RELATIVE = 1e-4, 1e-5  # of an output of a float32 graph; the latter of the largest


@dataclass(frozen=True)
class TorchFree:
    """A process of torch_free_child.py, one for all tests of a worker."""

    process: subprocess.Popen[str]
    folder: Path

    def run(self, model: Path, inputs: Mapping[str, Array]) -> Array:
        """The first output of the file for one batch."""
        files = {"inputs": self.folder / "in.npz", "output": self.folder / "out.npy"}
        np.savez(files["inputs"], **dict(inputs))
        files["output"].unlink(missing_ok=True)
        task = {"model": str(model), **{name: str(path) for name, path in files.items()}}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().strip()
        assert answer == "done", answer
        return np.asarray(np.load(files["output"], allow_pickle=False))


@contextmanager
def torch_free_process(folder: Path) -> Iterator[TorchFree]:
    with subprocess.Popen(
        [sys.executable, str(CHILD)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield TorchFree(process, folder)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(60) == 0


def assert_the_device_agrees(
    device: TorchFree,
    model: Path,
    classifier: Any,
    batches: Iterable[Mapping[str, Any]],
    *,
    axis: int | None = 1,
) -> None:
    """The file gives what torch gives for every batch: at least two of different sizes.

    Args:
        classifier: in eval mode, called with a batch of torch tensors.
        axis: of the outputs along which the largest decides; None: each by its sign.
    """
    import torch

    sizes = set()
    for batch in batches:
        with torch.no_grad():
            expected = classifier(**batch).numpy()
        found = device.run(model, {name: value.numpy() for name, value in batch.items()})
        sizes.add(len(found))
        assert found.shape == expected.shape
        assert np.isfinite(found).all()
        error = float(np.abs(found - expected).max())
        assert error <= max(ABSOLUTE, RELATIVE * float(np.abs(expected).max())), error
        assert_same_decisions(expected, found, axis)
    assert len(sizes) > 1, "one batch size proves little"


def assert_same_decisions(expected: Array, found: Array, axis: int | None) -> None:
    """Equal wherever torch's own is not level to the rounding of float32."""
    scale = RELATIVE * max(float(np.abs(expected).max()), 1e-30)
    if axis is None:
        sure, same = np.abs(expected) > scale, (expected > 0) == (found > 0)
    else:
        best = np.sort(expected, axis=axis)
        first, second = (np.take(best, -k, axis=axis) for k in (1, min(2, best.shape[axis])))
        sure = first - second > 2 * scale
        same = expected.argmax(axis=axis) == found.argmax(axis=axis)
    assert same[sure].all()
