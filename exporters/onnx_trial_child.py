"""The process of `onnx_trial`: FILE and its limits as JSON are its arguments. It imports nothing of ours.

Exit code 0: it loads and runs. 1: it does not, with the reason on standard output. Else: it was too much.
"""

from __future__ import annotations

import contextlib
import json
import sys

TYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(bool)": "bool",
}
MAX_INPUT = 1 << 26  # numbers that a fixed shape may ask for


def limit(memory: int, seconds: float) -> None:
    """memory: bytes beside what the process has by now."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_AS)
        with open("/proc/self/statm") as statm:  # noqa: PTH123
            has = int(statm.read().split()[0]) * resource.getpagesize()
        wanted = has + memory
        wanted = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
        resource.setrlimit(resource.RLIMIT_AS, (wanted, most))
        spent = int(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]))
        resource.setrlimit(
            resource.RLIMIT_CPU, (int(seconds) + spent + 1, int(seconds) + spent + 2)
        )
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def main() -> int:
    import numpy as np
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as states

    own: tuple[type[Exception], ...] = (
        states.Fail,
        states.InvalidGraph,
        states.InvalidProtobuf,
        states.InvalidArgument,
    )
    own += (states.NoSuchFile, states.NotImplemented, states.RuntimeException)
    plain = (RuntimeError, ValueError, TypeError, OSError, MemoryError, LookupError)
    refused: tuple[type[Exception], ...] = (*own, *plain)
    path, given = sys.argv[1], json.loads(sys.argv[2])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 4
    limit(given["memory"], given["seconds"])
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        if given["run"]:
            feed = {}
            for value in session.get_inputs():
                shape = [size if isinstance(size, int) and size > 0 else 1 for size in value.shape]
                count = 1
                for size in shape:
                    count *= size
                if value.type not in TYPES or count > MAX_INPUT:
                    return _say(f"an input {value.name!r} of type {value.type} and shape {shape}")
                feed[value.name] = np.zeros(shape, TYPES[value.type])
            for result in session.run(None, feed):
                floats = isinstance(result, np.ndarray) and result.dtype.kind == "f"
                if floats and not np.isfinite(result).all():
                    return _say("one that gives NaN or infinity for zeros")
    except refused as error:
        return _say(f"{type(error).__name__}: {error}")
    return 0


def _say(text: str) -> int:
    sys.stdout.write(" ".join(text.split())[:200])
    return 1


if __name__ == "__main__":
    sys.exit(main())
