"""Reads one Parquet file, given as standard input, from end to end, and says what is wrong with it.

A program of its own, run by `parquet.py`: pyarrow ends the whole process on some damaged files, and a
small file may unpack to anything. Here that ends this process, within its limit of memory, and no other.

Exit code 0: sound. 1: not, with the reason on standard output. Anything else: it was too much for pyarrow.
"""

from __future__ import annotations

import contextlib
import sys

MEMORY = 2 << 30  # of address space, of which pyarrow itself takes a part
OPTIONS = {
    "thrift_string_size_limit": 16 << 20,
    "thrift_container_size_limit": 1 << 20,
    "page_checksum_verification": True,
    "pre_buffer": False,
    "buffer_size": 1 << 20,  # a column is read piece by piece, not as a whole
}
ROWS = 256


def text_columns(schema) -> list[str]:  # type: ignore[no-untyped-def]
    """Columns of text: read as a dictionary, a text that comes a million times is there once."""
    import pyarrow as pa

    kinds = (pa.types.is_string, pa.types.is_large_string)
    return [field.name for field in schema if any(is_text(field.type) for is_text in kinds)]


def parquet_errors() -> tuple[type[Exception], ...]:
    """What pyarrow raises on damaged files."""
    import pyarrow

    plain = (OSError, ValueError, TypeError, LookupError, ArithmeticError, MemoryError)
    return (pyarrow.ArrowException, *plain)


def main() -> int:
    import pyarrow.parquet as pq

    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_AS)
        limit = MEMORY if most == resource.RLIM_INFINITY else min(MEMORY, most)
        resource.setrlimit(resource.RLIMIT_AS, (limit, most))
    stream = sys.stdin.buffer
    try:
        file = pq.ParquetFile(stream, **OPTIONS)
        for group in range(file.metadata.num_row_groups):
            about = file.metadata.row_group(group)
            for place in range(about.num_columns):
                about.column(place).total_uncompressed_size  # noqa: B018 - aborts where it is damaged
        stream.seek(0)
        file = pq.ParquetFile(stream, read_dictionary=text_columns(file.schema_arrow), **OPTIONS)
        for batch in file.iter_batches(batch_size=ROWS, use_threads=False):
            batch.validate(full=True)
    except parquet_errors() as error:
        sys.stdout.write((" ".join(str(error).split()) or type(error).__name__)[:200])
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
