"""Which adapted weights are [in, out]: one flag of PEFT's stands for all, and is right for some only.

PEFT looks at each layer of the model: for a Linear it sets fan_in_fan_out to false, for transformers'
Conv1D to true, and what it saves is what the last of them wanted (tried with 0.21). A merge of files
has no layers to look at, but it has the shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from edge_pslora.errors import AdapterError
from edge_pslora.workspace.adapter_folder import Adapter, LoraModule


def with_layouts(adapter: Adapter, shapes: Mapping[str, tuple[int, ...]]) -> tuple[LoraModule, ...]:
    """The modules, each with the fan_in_fan_out that the shape of its base weight wants.

    Args:
        shapes: of the base weights, by path.

    Raises:
        AdapterError: a square weight that the flag does not decide, as it is wrong for other layers.
    """
    if adapter.layouts_known:
        return adapter.modules
    found: list[LoraModule] = []
    corrected, square = False, ""
    for module in adapter.modules:
        inputs = adapter.header.specs[module.a_key].shape[1]
        outputs = adapter.header.specs[module.b_key].shape[0]
        shape = shapes[module.path]
        if len(shape) == 2 and not (module.embedding or module.packed):
            if inputs == outputs:
                square = module.path
            elif shape in ((outputs, inputs), (inputs, outputs)):
                fan = shape == (inputs, outputs)
                corrected = corrected or fan != module.fan_in_fan_out
                module = replace(module, fan_in_fan_out=fan)
        found.append(module)
    if corrected and square:
        raise AdapterError(
            f"{adapter.weights}, {square}",
            expected="a fan_in_fan_out that is right for every layer, as this weight is square",
            found="one that is not",
            remedy="merge it with PEFT: merge_and_unload()",
        )
    return tuple(found)
