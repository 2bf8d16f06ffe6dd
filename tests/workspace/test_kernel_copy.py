"""Copying by the kernel: exact, the same when the kernel cannot, and never endless."""

from __future__ import annotations

import errno
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_pslora.errors import EdgePsloraError, ModelError
from edge_pslora.workspace import durable

CANNOT = [errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM]
DATA = bytes(os.urandom(5000))

pytestmark = pytest.mark.skipif(not hasattr(os, "copy_file_range"), reason="needs copy_file_range")


@pytest.fixture
def source(tmp_path):
    (tmp_path / "source").write_bytes(DATA)
    descriptor = os.open(tmp_path / "source", os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


def ranges_of(tmp_path, source, ranges) -> bytes:
    with durable.new_file(tmp_path / "out") as append:
        append(b"head")
        for offset, length in ranges:
            append.copy(source, offset, length, tmp_path / "source", error=ModelError)
        append(b"tail")
    return (tmp_path / "out").read_bytes()


def expected(ranges) -> bytes:
    return b"head" + b"".join(DATA[o : o + n] for o, n in ranges) + b"tail"


_ranges = st.lists(
    st.tuples(st.integers(0, 4999), st.integers(0, 5000)).map(
        lambda r: (r[0], min(r[1], 5000 - r[0]))
    ),
    max_size=5,
)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ranges=_ranges, chunk=st.sampled_from([1, 7, 1 << 20]), kernel=st.booleans())
def test_any_ranges_in_any_order(tmp_path, source, ranges, chunk, kernel):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(durable, "_COPY_CHUNK", max(chunk, 100))
        if kernel:
            real = os.copy_file_range  # which may copy less than it is asked for
            patch.setattr(
                os, "copy_file_range", lambda s, t, n, **k: real(s, t, min(n, 100 * chunk), **k)
            )
        else:
            patch.delattr(os, "copy_file_range")
        assert ranges_of(tmp_path, source, ranges) == expected(ranges)


def test_the_kernel_is_asked_and_python_reads_nothing(tmp_path, source, monkeypatch):
    asked = []
    real = os.copy_file_range

    def ask(*args, **kwargs):
        asked.append(kwargs)
        return real(*args, **kwargs)

    monkeypatch.setattr(os, "copy_file_range", ask)
    for name in ("read", "pread", "preadv", "readv"):
        monkeypatch.setattr(os, name, lambda *a, n=name: pytest.fail(n))
    result = ranges_of(tmp_path, source, [(10, 4000)])
    monkeypatch.undo()
    assert result == expected([(10, 4000)])
    assert asked == [{"offset_src": 10}]


def test_whole_blocks_are_asked_for_where_both_files_have_them(tmp_path, monkeypatch):
    """Then a file system that can shares them, whatever lies before them in their block."""
    data = os.urandom(5 * 4096)
    (tmp_path / "large").write_bytes(data)
    asked = []
    real = os.copy_file_range
    monkeypatch.setattr(
        os,
        "copy_file_range",
        lambda s, t, n, **k: (asked.append((k["offset_src"], n)), real(s, t, n, **k))[1],
    )
    source = os.open(tmp_path / "large", os.O_RDONLY)
    for before, expected in ((4096 + 100, [(100, 3996), (4096, 16284)]), (7, [(100, 20280)])):
        asked.clear()
        with durable.new_file(tmp_path / "out") as append:
            append(bytes(before))
            append.copy(source, 100, 20280, tmp_path / "large")
        assert (tmp_path / "out").read_bytes() == bytes(before) + data[100:20380]
        assert asked == expected
    os.close(source)


@pytest.mark.parametrize("code", CANNOT)
@pytest.mark.parametrize("after", [0, 2])
def test_where_the_kernel_cannot_python_goes_on_from_there(
    tmp_path, source, monkeypatch, code, after
):
    real, calls = os.copy_file_range, []

    def fail(s, t, n, **k):
        calls.append(n)
        if len(calls) > after:
            raise OSError(code, os.strerror(code))
        return real(s, t, min(n, 333), **k)

    monkeypatch.setattr(os, "copy_file_range", fail)
    assert ranges_of(tmp_path, source, [(5, 4321)]) == expected([(5, 4321)])
    assert len(calls) == after + 1


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_real_error_is_one_and_leaves_nothing(tmp_path, source, monkeypatch, code):
    def fail(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "copy_file_range", fail)
    with pytest.raises(EdgePsloraError, match=os.strerror(code)):
        ranges_of(tmp_path, source, [(0, 5000)])
    assert {path.name for path in tmp_path.iterdir()} == {"source"}


@pytest.mark.parametrize("kernel", [True, False])
def test_a_source_that_shrinks_meanwhile_is_an_error(tmp_path, source, monkeypatch, kernel):
    real = os.copy_file_range

    def shrink(s, t, n, **k):
        os.truncate(tmp_path / "source", 1000)
        if not kernel:
            raise OSError(errno.EXDEV, "planted")
        return real(s, t, n, **k)

    monkeypatch.setattr(os, "copy_file_range", shrink)
    with pytest.raises(ModelError, match=r"source: expected .* bytes at .*changed while read"):
        ranges_of(tmp_path, source, [(500, 4000)])
    assert {path.name for path in tmp_path.iterdir()} == {"source"}


def test_a_kernel_that_copies_nothing_does_not_hang(tmp_path, source, monkeypatch):
    monkeypatch.setattr(os, "copy_file_range", lambda *args, **kwargs: 0)
    assert ranges_of(tmp_path, source, [(1, 4999)]) == expected([(1, 4999)])


def test_a_whole_file_is_copied_that_way_too(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(DATA)
    monkeypatch.setattr(os, "preadv", lambda *args: pytest.fail("read by Python"))
    durable.copy_file(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == DATA
    (tmp_path / "empty").write_bytes(b"")
    durable.copy_file(tmp_path / "empty", tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == b""
