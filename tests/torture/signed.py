"""Signed updates: every bit turned, every length, every forgery; none is taken, none is parsed.

What is signed is told by TUF's four files, which have to be parsed to be checked: that happens in
python-tuf, and in the one form that signing/metadata.py takes. bundle.json (and in it the manifest)
and the payload are read by nobody before their length and sha256 were found right: counted here.
"""

from __future__ import annotations

import http.server
import json
import os
import random
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tuf.api.metadata import Root

from edge_pslora.device import assemble, receive
from edge_pslora.exporters.bundle_tar import write_tar
from edge_pslora.signing import roles, trusted
from edge_pslora.update import replay
from edge_pslora.workspace import layout
from edge_pslora.workspace.durable import write_bytes
from tests.signing.signing_kit import files_of
from tests.torture import signed_world as w
from tests.torture.plan import Plan, Row
from tests.torture.signed_forgeries import forgeries
from tests.torture.signed_world import World, make_world

# name of a target in the bundle; the four files of metadata go by what they are
PAYLOAD = ("delta.safetensors", "README.md")
METADATA = ("root", "timestamp", "snapshot", "targets")
LENGTHENED = (b"\n", b"\0", b"x" * 4096)
Case = tuple[
    str, int, bytes
]  # file; place of the change; "" cuts there, else what is written there

parsed: list[str] = []  # what was given to a parser since it was last emptied


def run(plan: Plan) -> list[Row]:
    with scratch(plan.scratch) as place:
        world = make_world(place)
        count_parsers()
        return [row for part in PARTS.values() for row in part(plan, world)]


def _metadata(plan: Plan, world: World) -> list[Row]:
    return [_flips(plan, world, METADATA, "metadata", plan.size(0, 25))]


def _described(plan: Plan, world: World) -> list[Row]:
    return [_flips(plan, world, ("bundle.json",), "bundle.json", plan.size(0, 40))]


def _flips(plan: Plan, world: World, names: Sequence[str], what: str, most: int | None) -> Row:
    """Every bit of files that a device reads before it takes anything; `most` of each file in quick."""
    draw = random.Random(plan.seed)
    cases: list[Case] = []
    for name in names:
        content = _path(world.bundle, name).read_bytes()
        bits = range(8 * len(content))
        chosen = sorted(draw.sample(bits, most)) if most else bits
        cases += [(name, bit // 8, _turned(content, bit)) for bit in chosen]
    wrong = _in_children(plan, world, cases, apply=False)
    wanted = most or 10_000
    return Row(f"signed: bits turned in {what}", len(cases), len(wrong), wanted, note=_first(wrong))


def _payload(plan: Plan, world: World) -> list[Row]:
    draw = random.Random(plan.seed + 1)
    contents = {name: _path(world.bundle, name).read_bytes() for name in PAYLOAD}
    cases: list[Case] = []
    for _ in range(plan.size(10_000, 25)):
        name = draw.choices(PAYLOAD, (9, 1))[0]
        bit = draw.randrange(8 * len(contents[name]))
        cases.append((name, bit // 8, _turned(contents[name], bit)))
    wrong = _in_children(plan, world, cases, apply=True)
    wanted = plan.size(10_000, 25)
    return [
        Row(
            "signed: bits turned in the payload", len(cases), len(wrong), wanted, note=_first(wrong)
        )
    ]


def _lengths(plan: Plan, world: World) -> list[Row]:
    """Cut at every length, and made longer."""
    draw = random.Random(plan.seed + 2)
    cases: list[Case] = []
    for name in (*METADATA, "bundle.json", *PAYLOAD):
        size = _path(world.bundle, name).stat().st_size
        cuts = range(size) if not plan.quick else draw.sample(range(size), 3)
        cases += [(name, cut, b"") for cut in cuts]
        cases += [(name, size, more) for more in LENGTHENED]
    wrong = _in_children(plan, world, cases, apply=False)
    wanted = plan.size(7000, 30)
    return [Row("signed: files cut or longer", len(cases), len(wrong), wanted, note=_first(wrong))]


def _forged(plan: Plan, world: World) -> list[Row]:
    """Each by verify and by apply, which must leave the device as it was."""
    wrong, cases = [], forgeries()
    for name, forge in cases.items():
        folder, device = _copy(world.bundle, "forged"), _copy(world.device, "forged-device")
        forge(world, folder)
        before = w.serving(device)
        for act in (w.verified(world, folder, device), w.applied(folder, device)):
            found = w.outcome(act)
            wrong += [f"{name}: {found}"] if found else []
        if w.serving(device) != before:
            wrong.append(f"{name}: the device changed")
    return [
        Row("signed: forged, revoked, old, expired, for others", 2 * len(cases), len(wrong), 100,
            note=_first(wrong)),
        _older(world),
    ]  # fmt: skip


def _older(world: World) -> Row:
    """A device that took the newer bundle: an older one is refused, the same one does nothing."""
    device = _copy(world.device, "ahead")
    wrong = []
    report = w.applied(world.bundle, device)()
    wrong += [] if report.applied else ["the good bundle was not taken"]
    before, files = w.serving(device), files_of(device)
    for act in (w.verified(world, world.first, device), w.applied(world.first, device)):
        found = w.outcome(act)
        wrong += [f"the bundle before: {found}"] if found else []
    again = w.applied(world.bundle, device)()
    wrong += ["the same bundle again was taken"] if again.applied else []
    wrong += ["the device changed"] if w.serving(device) != before else []
    wrong += ["files changed"] if files_of(device) != files else []
    return Row("signed: older refused, equal does nothing", 4, len(wrong), 4, note=_first(wrong))


def _clocks(plan: Plan, world: World) -> list[Row]:
    """A clock at its beginning believes in no time before the newest that was signed."""
    expired = _copy(world.bundle, "expired")
    w.reissue(expired, world.holders, expires=w.before_floor(world.device))
    wrong = []
    years = {1970: (expired,), 2100: (expired, world.bundle)}
    cases = 0
    for year, bundles in years.items():
        with w.clock_at(datetime(year, 1, 1, tzinfo=UTC)):
            for folder in bundles:
                device = _copy(world.device, "clock-device")
                for act in (w.verified(world, folder, device), w.applied(folder, device)):
                    cases += 1
                    found = w.outcome(act)
                    wrong += [f"{folder.name} in {year}: {found}"] if found else []
    with w.clock_at(datetime(1970, 1, 1, tzinfo=UTC)):
        cases += 1
        found = w.outcome(w.verified(world, world.bundle))
        wrong += [f"the good bundle in 1970: {found or 'refused'}"] if found != "accepted" else []
    return [Row("signed: clock at 1970 and 2100", cases, len(wrong), 7, note=_first(wrong))]


def _endless(plan: Plan, world: World) -> list[Row]:
    """A server that never stops sending one of the files: no more is read than may be."""
    wrong, most = [], 0
    names = (*METADATA, "bundle.json", *PAYLOAD)
    for name in names:
        path = _path(world.bundle, name)
        with _server(world.bundle, path.relative_to(world.bundle).as_posix()) as (address, sent):
            found = w.outcome(w.verified(world, address))
        wrong += [f"{name}: {found}"] if found else []
        most = max(most, sent[0])
    # the limit of targets.json, and what both ends of a connection hold
    limit = 5_000_000 + (16 << 20)
    wrong += [f"{most} bytes were sent"] if most > limit else []
    note = _first(wrong) or f"at most {most} bytes were sent"
    return [Row("signed: a source without an end", len(names), len(wrong), len(names), note=note)]


def _good(plan: Plan, world: World) -> list[Row]:
    """From each kind of source the good bundle is taken: refusing all would be no defence."""
    wrong = []
    tar = write_tar(world.bundle)
    with _server(world.bundle, "") as (address, _):
        for source in (world.bundle, tar, address):
            found = w.outcome(w.verified(world, source))
            wrong += [f"{source}: {found}"] if found != "accepted" else []
    return [Row("signed: good bundles taken", 3, len(wrong), 3, note=_first(wrong))]


def _in_children(plan: Plan, world: World, cases: list[Case], *, apply: bool) -> list[str]:
    """What went wrong, from processes that share the cases."""
    count = 1 if plan.quick else min(2, os.cpu_count() or 1)
    answers = []
    for number in range(count):
        out = world.place / f"answer-{number}"
        child = os.fork()
        if child == 0:
            code = 1
            try:
                write_bytes(out, json.dumps(_tried(world, cases[number::count], apply)).encode())
                code = 0
            finally:
                os._exit(code)
        answers.append((child, out))
    wrong: list[str] = []
    for child, out in answers:
        _, status = os.waitpid(child, 0)
        wrong += json.loads(out.read_bytes()) if status == 0 else [f"a process ended: {status}"]
    return wrong


def _tried(world: World, cases: list[Case], apply: bool) -> list[str]:
    """Each case in turn on one copy of the bundle, which is put right again."""
    folder = _copy(world.bundle, f"bundle-{os.getpid()}")
    device = _copy(world.device, f"device-{os.getpid()}")
    before = w.serving(device)
    wrong = []
    for name, at, change in cases:
        path = _path(folder, name)
        content = path.read_bytes()
        path.write_bytes(
            content[:at] + change + content[at + len(change) :] if change else content[:at]
        )
        act = w.applied(folder, device) if apply else w.verified(world, folder, device)
        parsed.clear()
        found = w.outcome(act)
        # of the payload's own checks bundle.json has been read, rightly: it was not changed
        unchecked = [p for p in parsed if p != "bundle.json" or name in (*METADATA, "bundle.json")]
        path.write_bytes(content)
        # what a refused try fetched may stay for the next: here each starts from nothing
        shutil.rmtree(device / layout.STAGING, ignore_errors=True)
        where = f"{name} at {at}"
        wrong += [f"{where}: {found}"] if found else []
        wrong += [f"{where}: {unchecked[0]} was parsed"] if unchecked else []
        if apply and w.serving(device) != before:
            return [*wrong, f"{where}: the device changed"]
    if w.outcome(w.verified(world, folder, device)) != "accepted":
        wrong.append("the good bundle was refused in the end")
    return wrong


def count_parsers() -> None:
    """Notes each call of what reads bundle.json or a file of the payload."""

    def noting(module: Any, name: str, what: str) -> None:
        real = getattr(module, name)

        def noted(*args: Any, **kwargs: Any) -> Any:
            parsed.append(what)
            return real(*args, **kwargs)

        setattr(module, name, noted)

    noting(receive.text, "decode", "bundle.json")
    noting(assemble, "open_tensors", "a tensor file")
    noting(assemble, "_check_onnx", "an ONNX file")
    noting(replay, "open_delta", "a delta")


def _path(folder: Path, name: str) -> Path:
    return w.metadata_of(folder)[name] if name in METADATA else w.target_of(folder, name)


def _turned(content: bytes, bit: int) -> bytes:
    return bytes([content[bit // 8] ^ 1 << bit % 8])


def _copy(source: Path, name: str) -> Path:
    target = source.with_name(name)
    if target.exists():
        shutil.rmtree(target)
    return Path(shutil.copytree(source, target))


def _first(wrong: Sequence[str]) -> str:
    return wrong[0] if wrong else ""


@contextmanager
def scratch(place: Path) -> Iterator[Path]:
    """In memory where there is room: a device syncs its files for each of thousands of bundles."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else place) as folder:
        before, tempfile.tempdir = tempfile.tempdir, folder
        try:
            yield Path(folder) / "s"
        finally:
            tempfile.tempdir = before


@contextmanager
def _server(folder: Path, endless: str) -> Iterator[tuple[str, list[int]]]:
    """The address of a folder, one file of which never ends; how much of it was sent at most."""
    sent = [0]

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(folder))

        def do_GET(self) -> None:
            if self.path != f"/{endless}":
                super().do_GET()
                return
            self.send_response(200)
            self.send_header("Content-Length", str(1 << 50))
            self.end_headers()
            try:
                self.wfile.write((folder / endless).read_bytes())
                while True:
                    self.wfile.write(b"\n" * 4096)
                    sent[0] += 4096
            except OSError:
                self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", sent
        finally:
            server.shutdown()
            thread.join()


def _no_hash() -> None:
    """Any contents of any length pass for what was signed."""

    def unchecked(source: Any, name: str, digest: Any) -> Iterator[bytes]:
        yield from source.stream(trusted.target_name(name, digest), digest.bytes)

    receive.stream_target = trusted.stream_target = unchecked


def _no_threshold() -> None:
    """One signature, or none, is enough."""
    Root.verify_delegate = lambda *args: None  # type: ignore[method-assign]
    roles.require_signed = lambda *args: None


def _no_counter() -> None:
    receive.check_counter = lambda *args: None


def _no_floor() -> None:
    """A device believes its clock, whatever it says."""
    real = trusted._checked
    early = datetime(1970, 1, 1, tzinfo=UTC)
    trusted._checked = lambda *given: real(
        *(early if isinstance(argument, datetime) else argument for argument in given)
    )


Part = Callable[[Plan, World], list[Row]]
PARTS: Mapping[str, Part] = {
    "metadata": _metadata,
    "bundle.json": _described,
    "payload": _payload,
    "lengths": _lengths,
    "forged": _forged,
    "clocks": _clocks,
    "endless": _endless,
    "good": _good,
}
PLANTS: Mapping[str, Callable[[], None]] = {
    "hash": _no_hash,
    "threshold": _no_threshold,
    "counter": _no_counter,
    "floor": _no_floor,
}
