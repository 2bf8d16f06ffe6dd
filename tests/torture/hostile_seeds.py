"""Small valid files of every kind that a model, a workspace or an update consists of."""

from __future__ import annotations

import contextlib
import io
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edge_pslora.cli.main import main


@dataclass(frozen=True)
class Seeds:
    """workspace: files of a workspace with one generation; delta: of its first generation's update;
    text: a Hugging Face folder of a text model; pt2: a network of torch.export."""

    workspace: Mapping[str, bytes]
    delta: bytes
    text: Mapping[str, bytes]
    pt2: bytes

    def generation(self, name: str) -> bytes:
        return self.workspace[f"w/generations/000001/{name}"]


def make_seeds(folder: Path) -> Seeds:
    """Runs one session and one export; some seconds."""
    import torch
    from torch import nn

    from tests.families.family_kit import text_folder

    rng = random.Random(0)
    rows = [f"{rng.gauss(4 * (i % 2), 1)},{rng.gauss(0, 1)},{'xy'[i % 2]}" for i in range(60)]
    data = folder / "d.csv"
    data.write_text("a,b,label\n" + "\n".join(rows) + "\n")
    workspace = folder / "w"
    _command("adapt", data, "--model", "auto", "--workspace", workspace, "--epochs", 1, "--rank", 2)
    _command("export", workspace, folder / "out", "--format", "delta")
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(net, (torch.zeros(2, 2),), dynamic_shapes=(batch,))
    written = io.BytesIO()
    torch.export.save(program, written)
    return Seeds(
        workspace=_files(workspace, "w"),
        delta=(folder / "out" / "delta.safetensors").read_bytes(),
        text=_files(text_folder("bert", folder / "hf", ("x", "y")), "hf"),
        pt2=written.getvalue(),
    )


def _command(*arguments: object) -> None:
    """A command that must succeed, with its words held back."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = main([*map(str, arguments), "--quiet"])
    if code:
        raise RuntimeError(said.getvalue())


def _files(folder: Path, name: str) -> dict[str, bytes]:
    return {
        f"{name}/{path.relative_to(folder)}": path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "lock"
    }
