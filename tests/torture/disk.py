"""A disk as POSIX promises it: what was synced stays; of all else any part may be found after a power loss.

A file's writes are pending until its fsync, a folder's names until the folder's own: to sync a file does
not sync its name. A rename within one folder is one step; one between two folders is a step in each, and
either may be lost. Real file systems promise more; nothing here is asked of them.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tests.torture.tracer import Call

# relative path -> contents of a file; None: a folder; a text: a symbolic link to it
Content = bytes | str | None
Tree = Mapping[str, Content]
SECTORS = (512, 4096)
_ROOT = 0


@dataclass(frozen=True)
class Write:
    offset: int
    data: bytes


@dataclass(frozen=True)
class Resize:
    length: int


@dataclass(frozen=True)
class Names:
    """One step in a folder: names and the nodes that they stand for then, None where they are gone."""

    number: int
    changes: tuple[tuple[str, int | None], ...]


@dataclass
class File:
    synced: bytes = b""
    pending: list[Write | Resize] = field(default_factory=list)

    def now(self) -> bytes:
        return after(self.synced, self.pending)


@dataclass
class Symlink:
    """Its text comes with its name."""

    synced: str
    pending: tuple[()] = ()


@dataclass
class Folder:
    synced: dict[str, int] = field(default_factory=dict)
    now: dict[str, int] = field(default_factory=dict)
    pending: list[Names] = field(default_factory=list)


def after(content: bytes, changes: Iterable[Write | Resize]) -> bytes:
    """What a file holds after changes; what no write reached is zero."""
    data = bytearray(content)
    for change in changes:
        end = change.length if isinstance(change, Resize) else change.offset + len(change.data)
        data.extend(bytes(max(end - len(data), 0)))
        if isinstance(change, Resize):
            del data[end:]
        else:
            data[change.offset : end] = change.data
    return bytes(data)


def contents(file: File) -> list[bytes]:
    """What a file may hold after a power loss; the first: nothing of what is pending; the last: all."""
    if not file.pending:
        return [file.synced]
    changes = file.pending
    found = [file.synced]
    for count in {1, len(changes) // 2, len(changes) - 1}:
        found.append(after(file.synced, changes[:count]))
    last = changes[-1]
    if isinstance(last, Write):
        before = after(file.synced, changes[:-1])
        for sector in SECTORS:
            if len(last.data) > sector:
                torn = after(before, [Write(last.offset, last.data[:sector])])
                found += [
                    torn,
                    after(torn, [Resize(max(len(before), last.offset + len(last.data)))]),
                ]
        found.append(after(file.synced, [last]))  # without the earlier ones
    found.append(zeros(file))
    found.append(file.now())
    return [*dict.fromkeys(found[:-1]), found[-1]]


def zeros(file: File) -> bytes:
    """The size is there, the data is not."""
    blank = [
        Write(c.offset, bytes(len(c.data))) if isinstance(c, Write) else c for c in file.pending
    ]
    return after(file.synced, blank)


class Disk:
    """The folder `root`, call by call. A call that failed, or was not made, changes nothing."""

    def __init__(self, root: str, tree: Tree) -> None:
        self._root = root.rstrip("/")
        self._nodes: dict[int, File | Folder | Symlink] = {_ROOT: Folder()}
        self._steps = 0
        for path in sorted(tree):
            content = tree[path]
            folder, name = self._parent(f"{self._root}/{path}")
            node = self._new(_node(content))
            folder.synced[name] = folder.now[name] = node

    def apply(self, call: Call) -> None:
        """Raises ValueError for a call whose effect is not modelled."""
        if call.result is None or call.result < 0 or call.path.endswith(" (deleted)"):
            return
        if call.name in ("create", "mkdir", "symlink"):
            self._make(call)
        elif call.name == "write":
            assert call.data is not None
            assert call.offset is not None
            self._file(call.path).pending.append(Write(call.offset, call.data))
        elif call.name in ("truncate", "ftruncate"):
            assert call.length is not None
            self._file(call.path).pending.append(Resize(call.length))
        elif call.name == "fsync":
            self._sync(self._nodes[self._find(call.path)])
        elif call.name in ("unlink", "rmdir"):
            folder, name = self._parent(call.path)
            self._step([(folder, ((name, None),))])
        elif call.name in ("rename", "link"):
            self._rename(call, keep=call.name == "link")
        elif call.name == "syncfs":
            for node in self._nodes.values():
                self._sync(node)
        elif call.name != "sync_file_range":
            raise ValueError(f"{call.name} {call.path}: not modelled")

    def tree(self) -> dict[str, Content]:
        """What every program sees now."""
        everything = {number: self._all(number) for number in self._dirty_folders()}
        return self._tree({n: f.now() for n, f in self._dirty_files().items()}, everything)

    def synced(self) -> dict[str, Content]:
        """What stays whatever happens."""
        return self._tree({}, {})

    def unsynced(self, path: str) -> list[str]:
        """Paths of files, at and below an absolute path, whose data are pending, and of pending names."""
        start = self._find(path)
        return sorted(set(self._unsynced(start, path)))

    def below(self, path: str) -> list[str]:
        """Paths of the files at and below a path, as every program sees them."""
        node = self._nodes[self._find(path)]
        if not isinstance(node, Folder):
            return [path]
        return [found for name in node.now for found in self.below(f"{path}/{name}")]

    def crashes(
        self, random_: random.Random, more: int, most: int = 400
    ) -> Iterator[dict[str, Content]]:
        """Trees that may be found if the power fails now; some come twice.

        Every folder's every prefix and each step alone, with all data, none, and sizes without data;
        every file's every possible content with all names there; then `more` mixtures. Of more than
        `most` of them a random sample.
        """
        found = list(self._possible(random_, more))
        for data, steps in found if len(found) <= most else random_.sample(found, most):
            yield self._tree(data, steps)

    def _possible(
        self, random_: random.Random, more: int
    ) -> Iterator[tuple[Mapping[int, bytes], Mapping[int, Sequence[Names]]]]:
        """What of each file's data and of each folder's steps got there."""
        files, folders = self._dirty_files(), self._dirty_folders()
        possible = {number: contents(file) for number, file in files.items()}
        everything = {number: self._all(number) for number in folders}
        data: list[dict[int, bytes]] = [
            {},
            {number: zeros(file) for number, file in files.items()},
            {number: found[-1] for number, found in possible.items()},
        ]
        steps = sorted({s.number for folder in folders.values() for s in folder.pending})
        for held in data if files else data[:1]:
            yield held, {}
            yield held, everything
            for last in steps[:-1]:  # in their order, as a journal keeps them
                yield (
                    held,
                    {n: [s for s in f.pending if s.number <= last] for n, f in folders.items()},
                )
            for number, folder in folders.items():
                for choice in _choices(folder):
                    yield held, {number: choice}
                    yield held, {**everything, number: choice}
        for number, found in possible.items():
            for content in found:
                yield {number: content}, everything
                yield {**data[-1], number: content}, everything
        for _ in range(more if files or folders else 0):
            yield (
                {n: random_.choice(found) for n, found in possible.items()},
                {n: [s for s in f.pending if random_.random() < 0.5] for n, f in folders.items()},
            )

    def _all(self, number: int) -> Sequence[Names]:
        folder = self._nodes[number]
        assert isinstance(folder, Folder)
        return folder.pending

    def _dirty_files(self) -> dict[int, File]:
        return {n: x for n, x in self._nodes.items() if isinstance(x, File) and x.pending}

    def _dirty_folders(self) -> dict[int, Folder]:
        return {n: x for n, x in self._nodes.items() if isinstance(x, Folder) and x.pending}

    def _tree(
        self, data: Mapping[int, bytes], steps: Mapping[int, Sequence[Names]]
    ) -> dict[str, Content]:
        found: dict[str, Content] = {}

        def walk(number: int, prefix: str) -> None:
            node = self._nodes[number]
            assert isinstance(node, Folder)
            entries: dict[str, int | None] = dict(node.synced)
            for step in steps.get(number, ()):
                entries.update(step.changes)
            for name, inside in entries.items():
                if inside is None:
                    continue
                child = self._nodes[inside]
                path = f"{prefix}{name}"
                if isinstance(child, File):
                    found[path] = data.get(inside, child.synced)
                elif isinstance(child, Symlink):
                    found[path] = child.synced
                else:
                    found[path] = None
                    walk(inside, f"{path}/")

        walk(_ROOT, "")
        return found

    def _unsynced(self, number: int, path: str) -> Iterator[str]:
        node = self._nodes[number]
        if isinstance(node, File):
            yield from [path] if node.pending else []
        elif isinstance(node, Folder):
            yield from (f"{path}/{n}" for step in node.pending for n, _ in step.changes)
            for name, inside in node.now.items():
                yield from self._unsynced(inside, f"{path}/{name}")

    def _make(self, call: Call) -> None:
        folder, name = self._parent(call.path)
        if name in folder.now:
            if call.truncates:
                self._file(call.path).pending.append(Resize(0))
            return
        if call.name == "symlink":
            made = self._new(Symlink((call.data or b"").decode()))
        else:
            made = self._new(Folder() if call.name == "mkdir" else File())
        self._step([(folder, ((name, made),))])

    def _rename(self, call: Call, *, keep: bool) -> None:
        assert call.target is not None
        number = self._find(call.path)
        (old, old_name), (new, new_name) = self._parent(call.path), self._parent(call.target)
        if new.now.get(new_name) == number:
            return  # two names of one file: renaming does nothing
        gone, come = (old_name, None), (new_name, number)
        if keep:
            self._step([(new, (come,))])
        elif old is new:
            self._step([(old, (gone, come))])
        else:
            self._step([(new, (come,)), (old, (gone,))])

    def _step(self, changes: Sequence[tuple[Folder, tuple[tuple[str, int | None], ...]]]) -> None:
        self._steps += 1
        for folder, names in changes:
            folder.pending.append(Names(self._steps, names))
            for name, number in names:
                if number is None:
                    del folder.now[name]
                else:
                    folder.now[name] = number

    def _sync(self, node: File | Folder | Symlink) -> None:
        if isinstance(node, File):
            node.synced = node.now()
            node.pending.clear()
        elif isinstance(node, Folder):
            node.synced = dict(node.now)
            node.pending.clear()

    def _new(self, node: File | Folder | Symlink) -> int:
        number = len(self._nodes)
        self._nodes[number] = node
        return number

    def _find(self, path: str) -> int:
        number = _ROOT
        for name in self._inside(path):
            node = self._nodes[number]
            assert isinstance(node, Folder)
            number = node.now[name]
        return number

    def _file(self, path: str) -> File:
        node = self._nodes[self._find(path)]
        assert isinstance(node, File)
        return node

    def _parent(self, path: str) -> tuple[Folder, str]:
        *folders, name = self._inside(path)
        node = self._nodes[self._find("/".join([self._root, *folders]))]
        assert isinstance(node, Folder)
        return node, name

    def _inside(self, path: str) -> list[str]:
        if path != self._root and not path.startswith(f"{self._root}/"):
            raise ValueError(f"{path}: outside of {self._root}")
        return [name for name in path[len(self._root) :].split("/") if name]


def _node(content: Content) -> File | Folder | Symlink:
    if content is None:
        return Folder()
    return File(content) if isinstance(content, bytes) else Symlink(content)


def _choices(folder: Folder) -> Iterator[Sequence[Names]]:
    """Of a folder's steps: none, each prefix in order, each alone though it was not the first."""
    for count in range(len(folder.pending) + 1):
        yield folder.pending[:count]
    for step in folder.pending[1:]:
        yield [step]
