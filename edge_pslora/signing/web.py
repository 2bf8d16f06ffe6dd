"""A bundle on a web server of one's own: plain GET requests, no redirects, no proxies, no patience.

Nothing else in edge-pslora opens a connection, and this only to the address that the user gave.
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Timer
from urllib.parse import urlsplit

from edge_pslora.errors import BundleError, UsageError
from edge_pslora.signing.sources import check_name, missing

SILENCE = 10.0  # seconds without a byte
GRACE = 60.0  # seconds for one file, whatever its speed; then it has to have come
SLOWEST = 4096  # bytes a second
_CHUNK = 1 << 16
_NOT_THERE = frozenset({403, 404, 410})
_PATH = re.compile(r"[A-Za-z0-9_.~/\-]*")


class WebSource:
    """The folder of a bundle behind an address; one connection for each file."""

    def __init__(self, address: str) -> None:
        try:
            parts = urlsplit(address)
            port = parts.port
        except ValueError as problem:
            raise _wrong(address, str(problem)) from problem
        if not parts.hostname or parts.username or parts.query or parts.fragment:
            raise _wrong(address, "something else beside")
        if not _PATH.fullmatch(parts.path):
            raise _wrong(address, "other characters in its path")
        self._where, self._parts, self._port = address, parts, port

    @property
    def where(self) -> str:
        return self._where

    def stream(self, name: str, limit: int) -> Iterator[bytes]:
        path = f"{self._parts.path.rstrip('/')}/{check_name(name, self.where)}"
        where = f"{self.where.rstrip('/')}/{name}"
        begun = time.monotonic()
        with _errors(where), self._connection() as connection:
            with _ended(connection, GRACE):
                connection.request("GET", path, headers={"Accept-Encoding": "identity"})
                answer = connection.getresponse()
            if answer.status in _NOT_THERE:
                raise missing(self.where, name)
            if answer.status != http.client.OK:
                raise _refused(where, "an answer with status 200", f"status {answer.status}")
            if answer.length is None:  # in pieces, each with a length that could drip in for ever
                raise _refused(where, "an answer with a Content-Length", "none")
            left = limit + 1
            while left > 0 and (part := answer.read1(min(_CHUNK, left))):
                left -= len(part)
                yield part
                late = time.monotonic() - begun - GRACE
                if late > 0 and (limit + 1 - left) < late * SLOWEST:
                    raise _refused(where, f"at least {SLOWEST} bytes a second", "a slower server")
            if left > 0 and answer.length:
                raise _refused(where, "all that was announced", f"{answer.length} bytes fewer")

    @contextmanager
    def _connection(self) -> Iterator[http.client.HTTPConnection]:
        host = self._parts.hostname or ""
        connection = (
            http.client.HTTPSConnection(
                host, self._port, timeout=SILENCE, context=ssl.create_default_context()
            )
            if self._parts.scheme == "https"
            else http.client.HTTPConnection(host, self._port, timeout=SILENCE)
        )
        try:
            yield connection
        finally:
            connection.close()


@contextmanager
def _ended(connection: http.client.HTTPConnection, seconds: float) -> Iterator[None]:
    """Close the connection when the block takes longer: headers can drip for ever."""

    def close() -> None:
        if connection.sock is not None:
            connection.sock.shutdown(socket.SHUT_RDWR)

    timer = Timer(seconds, close)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def _errors(where: str) -> Iterator[None]:
    try:
        yield
    except TimeoutError as problem:
        expected = f"an answer within {SILENCE:g} seconds"
        raise _refused(where, expected, "nothing more from the server") from problem
    except (OSError, http.client.HTTPException, ValueError) as problem:
        text = str(problem) or type(problem).__name__
        raise _refused(where, "an answer of the server", text) from problem


def _refused(where: str, expected: str, found: str) -> BundleError:
    return BundleError(
        where,
        expected=expected,
        found=found,
        remedy="check the server, then run the same command again; nothing was changed",
    )


def _wrong(address: str, found: str) -> UsageError:
    return UsageError(
        "--from",
        expected="an address such as http://HOST:PORT/FOLDER",
        found=f"{ascii(address)[:80]}: {found}",
        remedy="change the argument",
    )
