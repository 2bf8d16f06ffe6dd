"""Nothing that serves updates needs torch. Readers during swaps: tests/torture/readers.py."""

from __future__ import annotations

import subprocess
import sys


def test_serving_and_merging_load_no_heavy_package():
    code = (
        "import sys\n"
        "import edge_pslora.workspace.workspace, edge_pslora.workspace.lock\n"
        "import edge_pslora.merge_files, edge_pslora.core.merge\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'transformers', 'peft', 'PIL'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
