"""The torch-free merge against PEFT's merge_and_unload, on a tiny model with every layer kind."""

from __future__ import annotations

import numpy as np
import pytest

from edge_pslora.merge_files import merge
from edge_pslora.workspace.tensors import read_tensors, write_tensors


@pytest.mark.filterwarnings("ignore")  # PEFT's own warnings are not ours to fail on
@pytest.mark.parametrize("use_rslora", [False, True])
def test_equals_merge_and_unload(tmp_path, use_rslora):
    peft = pytest.importorskip("peft")
    torch = pytest.importorskip("torch")

    class Tiny(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.emb = torch.nn.Embedding(11, 6)
            self.conv = torch.nn.Conv2d(1, 4, 3)
            self.hidden = torch.nn.Linear(6, 8)
            self.head = torch.nn.Linear(8, 3)

        def forward(self, ids):
            return self.head(self.hidden(self.emb(ids)))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Tiny()
        state = {name: value.numpy().copy() for name, value in model.state_dict().items()}
        config = peft.LoraConfig(
            r=2,
            lora_alpha=5,
            use_rslora=use_rslora,
            target_modules=["emb", "conv", "hidden"],
            modules_to_save=["head"],
            rank_pattern={"conv": 3},
            alpha_pattern={"hidden": 7},
            init_lora_weights=False,
        )
        adapted = peft.get_peft_model(model, config)
        with torch.no_grad():
            adapted.base_model.model.head.modules_to_save["default"].weight.add_(1.0)
    write_tensors(tmp_path / "base.safetensors", state)
    adapted.save_pretrained(str(tmp_path / "adapter"))
    report = merge(
        [tmp_path / "adapter"], tmp_path / "base.safetensors", tmp_path / "out.safetensors", "none"
    )
    merged = adapted.merge_and_unload().state_dict()
    result = read_tensors(tmp_path / "out.safetensors")
    assert result.keys() == merged.keys()
    assert set(report.merged) == {"emb.weight", "conv.weight", "hidden.weight"}
    assert set(report.replaced) == {"head.weight", "head.bias"}
    for name, value in merged.items():
        np.testing.assert_allclose(result[name], value.numpy(), rtol=1e-5, atol=1e-6, err_msg=name)
        assert (name in report.merged) == (not np.array_equal(state[name], result[name])) or (
            name in report.replaced
        )
