"""The three sources give the same bytes, and hostile ones nothing else."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_pslora.errors import BundleError, EdgePsloraError, UsageError
from edge_pslora.signing import web
from edge_pslora.signing.sources import MissingFileError, open_source, read
from edge_pslora.signing.tar import index

NAMES = ("metadata/1.root.json", "targets/base/" + "a" * 64 + ".model.safetensors")


@pytest.fixture
def folder(tmp_path) -> Path:
    root = tmp_path / "bundle"
    for number, name in enumerate(NAMES):
        (root / name).parent.mkdir(parents=True)
        (root / name).write_bytes(bytes([number]) * (1500 * number + 700))
    return root


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...


@contextmanager
def served(folder: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def answering(*parts: bytes, pause: float = 0) -> Iterator[str]:
    """A server that says these bytes to whoever comes, whatever was asked."""

    def run() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            with peer:
                try:
                    peer.recv(4096)
                    for part in parts:
                        peer.sendall(part)
                        time.sleep(pause)
                except OSError:
                    pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)
    assert not thread.is_alive()


def test_all_three_give_the_same(folder, tmp_path):
    gnu, pax, own = tmp_path / "gnu.tar", tmp_path / "pax.tar", tmp_path / "ustar.tar"
    subprocess.run(["tar", "cf", gnu, "-C", folder, "."], check=True)
    for path, kind in ((pax, tarfile.PAX_FORMAT), (own, tarfile.USTAR_FORMAT)):
        with tarfile.open(path, "w", format=kind) as tar:
            tar.add(folder, arcname="")
    with served(folder) as address:
        for place in (str(folder), str(gnu), str(pax), str(own), address):
            with open_source(place) as source:
                for name in NAMES:
                    data = (folder / name).read_bytes()
                    assert read(source, name, len(data)) == data
                    with pytest.raises(BundleError, match="at most"):
                        read(source, name, len(data) - 1)
                    assert len(b"".join(source.stream(name, 3))) == 4
                with pytest.raises(MissingFileError):
                    read(source, "metadata/9.root.json", 10)
                for bad in (
                    "../x",
                    "/etc/passwd",
                    "a/../b",
                    ".x",
                    "a//b",
                    "",
                    "a\0b",
                    "a/" * 9 + "a",
                ):
                    with pytest.raises(BundleError, match="plain file name"):
                        read(source, bad, 10)


def test_links_pipes_and_folders_are_no_files(folder, tmp_path):
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "x").write_bytes(b"secret")
    (folder / "link").symlink_to(secret / "x")
    (folder / "metadata/link").symlink_to(secret)
    (folder / "dangling").symlink_to("nowhere")
    os.mkfifo(folder / "pipe")
    with open_source(str(folder)) as source:
        for name in ("link", "metadata/link/x", "dangling", "pipe", "metadata"):
            with pytest.raises(BundleError) as refused:
                read(source, name, 10)
            assert not isinstance(refused.value, MissingFileError), name
        (folder / NAMES[0]).chmod(0)
        stream = source.stream(NAMES[1], 5000)
        next(stream)
    for path in (folder / "pipe", folder / "dangling", folder / "nothing"):
        with pytest.raises(BundleError), open_source(str(path)):
            pass


def test_a_file_that_shrinks_while_it_is_read(folder, monkeypatch):
    monkeypatch.setattr("edge_pslora.signing.sources.CHUNK", 100)
    with open_source(str(folder)) as source:
        stream = source.stream(NAMES[1], 5000)
        next(stream)
        (folder / NAMES[1]).write_bytes(b"")
        with pytest.raises(BundleError, match="ends earlier"):
            list(stream)


def _tar(*members: tuple[str, bytes, dict]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, data, more in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for key, value in more.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


GOOD = _tar(("metadata/x", b"1" * 600, {}), ("targets/y", b"2", {}))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x" * 2000,
        b"\x1f\x8b" + b"z" * 2000,
        GOOD[:700],
        GOOD[:1536],
        _tar(("a", b"", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"})),
        _tar(("a", b"", {"type": tarfile.LNKTYPE, "linkname": "b"})),
        _tar(("a", b"", {"type": tarfile.CHRTYPE})),
        _tar(("a", b"", {"type": tarfile.FIFOTYPE})),
        _tar(("../a", b"x", {})),
        _tar(("/a", b"x", {})),
        _tar(("a", b"x", {}), ("a", b"y", {})),
        _tar(("a", b"x", {}), ("./a", b"y", {})),
        _tar(("n" * 70_000, b"x", {})),
    ],
)
def test_other_tar_files_are_refused(data, tmp_path):
    path = tmp_path / "b.tar"
    path.write_bytes(data)
    with pytest.raises(BundleError), open_source(str(path)):
        pass


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=4))
def test_no_tar_file_leads_anywhere_else(changes):
    """Whatever its headers say: plain names, inside the file, or one line."""
    data = bytearray(GOOD)
    for position, value in changes:
        data[position] = value
    for block in range(0, len(data), 512):  # a forger mends the sums
        total = sum(data[block : block + 148]) + 8 * 32 + sum(data[block + 156 : block + 512])
        if data[block + 257 : block + 262] == b"ustar":
            data[block + 148 : block + 156] = b"%06o\0 " % total
    descriptor = os.memfd_create("tar")
    try:
        os.write(descriptor, data)
        members = index(descriptor, len(data), "t")
    except BundleError:
        return
    finally:
        os.close(descriptor)
    for name, member in members.items():
        assert ".." not in name.split("/")
        assert not name.startswith("/")
        assert 0 <= member.offset <= member.offset + member.size <= len(data)


def test_servers_that_are_slow_silent_endless_or_lie(monkeypatch):
    monkeypatch.setattr(web, "SILENCE", 0.3)
    monkeypatch.setattr(web, "GRACE", 0.6)
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"

    def fetch(address: str) -> bytes:
        with open_source(address) as source:
            return read(source, "a", 100)

    with answering(head % 3, b"abc") as address:
        assert fetch(address) == b"abc"
    slow = [bytes([byte]) for byte in head % 50 + b"x" * 50]
    for parts, pause, match in (
        ([b""], 1, "within"),
        ([head % 9], 1, "within"),
        ([head % 10**12, b"x" * 5000], 0, "at most 100 bytes"),
        ([head % 50, b"x"], 0, "fewer|IncompleteRead|answer"),
        (slow, 0.05, "answer"),
        ([head % 60, *slow[-50:]], 0.05, "bytes a second"),
        ([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1"], 0, "Content-Length"),
        ([b"HTTP/1.1 301 X\r\nLocation: http://127.0.0.1:9/\r\n\r\n"], 0, "301"),
        ([b"HTTP/1.1 500 X\r\n\r\n"], 0, "500"),
        ([b"\0\xff" * 50], 0, "answer"),
        ([b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n"], 0, "answer"),
    ):
        begun = time.monotonic()
        with answering(*parts, pause=pause) as address, pytest.raises(BundleError, match=match):
            fetch(address)
        assert time.monotonic() - begun < 6
    with pytest.raises(BundleError, match="Connection refused"):
        fetch("http://127.0.0.1:1")


@pytest.mark.parametrize(
    "address",
    ["http://", "http://u:p@h/", "http://h:99999/", "http://h/?a", "http://h/a b", "http://[x/"],
)
def test_other_addresses_are_wrong_use(address):
    with pytest.raises(UsageError, match="--from"), open_source(address):
        pass


def test_no_proxy_is_asked(monkeypatch, folder):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with served(folder) as address, open_source(address) as source:
        assert len(read(source, NAMES[0], 10_000)) == 700


def test_errors_are_one_line(tmp_path):
    with pytest.raises(EdgePsloraError) as refused, open_source(str(tmp_path / "a\nb")):
        pass
    assert "\n" not in str(refused.value)
