"""The one writer: temporary file -> fsync -> rename -> fsync of the folder (THREATS.md, "Crash").

A failed fsync is never retried: after one, the kernel may have dropped the data and call the next
fsync a success. The file is given up and the error says so.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from edge_pslora.errors import EdgePsloraError, InputError, WorkspaceError
from edge_pslora.workspace.reading import FileDigest, digest_open, open_regular, read_into

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_ACCESS = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
# the kernel does not know copy_file_range, cannot between these two files, or may not
_NO_COPY = frozenset({errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM})
_NO_LINK = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EMLINK})
_COPY_CHUNK = 1 << 20
_DISK_BLOCK = 4096


@dataclass(frozen=True)
class Append:
    """Appends to a file in the making: append(data), append.copy(...). descriptor: may be read too."""

    descriptor: int

    def __call__(self, data: bytes | memoryview) -> None:
        view = memoryview(data).cast("B") if len(data) else memoryview(b"")
        while len(view):
            view = view[os.write(self.descriptor, view[: 1 << 30]) :]

    def digest(self) -> FileDigest:
        """Length and sha256 of what was appended so far, read back from the file."""
        digest = hashlib.sha256()
        size = os.fstat(self.descriptor).st_size
        path = Path("the file just written")
        digest_open(self.descriptor, 0, size, path, digest, error=WorkspaceError)
        return FileDigest(size, digest.hexdigest())

    def copy(
        self,
        source: int,
        offset: int,
        length: int,
        path: Path,
        *,
        error: type[InputError] = WorkspaceError,
    ) -> None:
        """`length` bytes of the open file `source` from `offset` on, by the kernel where it can.

        Where the file system can share blocks nothing is copied at all. path: the source's name.

        Raises:
            error: the source ends earlier or cannot be read.
        """
        position = os.lseek(self.descriptor, 0, os.SEEK_CUR)
        done = 0
        if (position - offset) % _DISK_BLOCK == 0 and length > 2 * _DISK_BLOCK:
            # whole blocks can be shared, if they are asked for from their beginning on
            done = _copy_in_kernel(source, offset, self.descriptor, -offset % _DISK_BLOCK)
        done += _copy_in_kernel(source, offset + done, self.descriptor, length - done)
        buffer = memoryview(bytearray(min(_COPY_CHUNK, length - done)))
        while done < length:
            part = buffer[: length - done]
            read_into(source, offset + done, part, path, error=error)
            self(part)
            done += len(part)

    @contextmanager
    def syncing(self) -> Iterator[None]:
        """What was appended goes to the disk while the block runs; a failed fsync is raised at its end."""
        with ThreadPoolExecutor(max_workers=1) as pool:
            synced = pool.submit(os.fsync, self.descriptor)
            yield
            synced.result()


@contextmanager
def new_file(path: Path, *, mode: int = 0o644) -> Iterator[Append]:
    """Write a file that appears at `path` whole or not at all; yields what appends to it.

    mode: its permissions, less those that the process's umask takes away; it has them from its first
    byte on. On any error the temporary file is removed and what was at `path` stays as it was.
    """
    temporary = _temporary(path)
    with storage_errors(path.parent, path.name):
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, mode)
        try:
            try:
                yield Append(descriptor)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            temporary.rename(path)
        except BaseException:
            with suppress(OSError):  # the first error is the one to report
                temporary.unlink()
            raise
        fsync_folder(path.parent)


def write_bytes(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace `path` by a file holding `data`, durably; mode: see new_file."""
    with new_file(path, mode=mode) as write:
        write(data)


def copy_file(source: Path, destination: Path, *, error: type[InputError] = WorkspaceError) -> None:
    """Durable copy of a regular file, in bounded memory."""
    with open_regular(source, error=error) as (descriptor, size), new_file(destination) as append:
        append.copy(descriptor, 0, size, source, error=error)


def link_file(source: Path, destination: Path) -> None:
    """A second name for a file, in place of what has that name; a copy where there are no links."""
    temporary = _temporary(destination)
    with storage_errors(destination.parent, destination.name):
        try:
            os.link(source, temporary)
        except OSError as problem:
            if problem.errno not in _NO_LINK:
                raise
            copy_file(source, destination)
            return
        try:
            temporary.rename(destination)
        except BaseException:
            with suppress(OSError):  # the first error is the one to report
                temporary.unlink()
            raise
        temporary.unlink(missing_ok=True)  # renaming does nothing when both name one file already
        fsync_folder(destination.parent)


def remove_file(path: Path) -> None:
    """Remove a file, and make that durable."""
    with storage_errors(path.parent, path.name):
        path.unlink()
        fsync_folder(path.parent)


def make_folder(folder: Path) -> None:
    """Create `folder` (its parent exists) and make its name durable; an existing one is fine."""
    with storage_errors(folder.parent, folder.name):
        try:
            folder.mkdir()
        except FileExistsError:
            if not folder.is_dir():
                raise
        # an existing one too: who made it may have been killed before it came to this
        fsync_folder(folder.parent)


def make_folders(folder: Path) -> list[Path]:
    """As make_folder, with the parents that are missing; gives those that were made, outermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        make_folder(path)
    return missing[::-1]


def sync_parents(path: Path) -> None:
    """Make the names of `path` and of the folders that it lies in durable, up to its file system's root.

    Whoever made some of them may have been killed before it came to that.
    """
    with storage_errors(path, path.name):
        device = path.stat().st_dev
        for folder in path.absolute().parents:
            if folder.stat().st_dev != device:
                return
            try:
                fsync_folder(folder)
            except PermissionError:
                return  # not readable: whoever made it and what is above it, it was not us


def publish_folder(staged: Path, final: Path) -> None:
    """Move `staged` to `final`, which must not exist, after every byte and name in it is on disk.

    Raises:
        EdgePsloraError: `final` exists, or `staged` holds a link or something not a plain file.
    """
    if final.exists() or final.is_symlink():
        raise EdgePsloraError(
            str(final),
            expected="a new name",
            found="it exists already",
            remedy="nothing was changed; start the run again",
        )
    with storage_errors(final.parent, final.name):
        sync_tree(staged)
        staged.rename(final)
        fsync_folder(final.parent)
        fsync_folder(staged.parent)


def sync_tree(folder: Path) -> None:
    """fsync every file below `folder`, then every folder, the innermost first."""
    for entry in sorted(os.scandir(folder), key=lambda item: item.name):
        mode = entry.stat(follow_symlinks=False).st_mode
        path = Path(entry.path)
        if stat.S_ISDIR(mode):
            sync_tree(path)
        elif stat.S_ISREG(mode):
            _fsync_path(path, os.O_RDONLY)
        else:
            raise EdgePsloraError(
                str(path),
                expected="plain files and folders",
                found="a link, pipe or device",
                remedy="remove it",
            )
    fsync_folder(folder)


def fsync_folder(folder: Path) -> None:
    """Make the names in `folder` durable (one try; see the top of this file)."""
    _fsync_path(folder, os.O_RDONLY | os.O_DIRECTORY)


def rename_durably(source: Path, destination: Path) -> None:
    """Rename within one file system and fsync both parent folders."""
    with storage_errors(destination.parent, destination.name):
        source.rename(destination)
        fsync_folder(destination.parent)
        if source.parent != destination.parent:
            fsync_folder(source.parent)


def remove_folder(folder: Path, trash: Path) -> None:
    """Remove a folder as a whole: it leaves its name in one step, then its contents go.

    trash: a folder on the same file system (made when missing) that is emptied the next time too.
    """
    with storage_errors(folder.parent, folder.name):
        make_folder(trash)
        rename_durably(folder, trash / f"{folder.name}.{secrets.token_hex(4)}")
        shutil.rmtree(trash)
        fsync_folder(trash.parent)


def remove_leftovers(folder: Path, name: str) -> None:
    """Remove temporary files that killed processes left for `name` in `folder`."""
    pattern = re.compile(rf"\.{re.escape(name)}\.([0-9]{{1,9}})\.[0-9a-f]{{8}}\.tmp")
    with storage_errors(folder, name):
        for entry in os.scandir(folder):
            match = pattern.fullmatch(entry.name)
            if match and not _alive(int(match.group(1))):
                Path(entry.path).unlink()


def require_free_space(path: Path, needed: int) -> None:
    """Refuse early when the file system of `path` (or its nearest parent) lacks `needed` bytes."""
    folder = path.absolute()
    while not folder.is_dir():
        folder = folder.parent
    with storage_errors(folder, path.name):
        info = os.statvfs(folder)
    free = info.f_bavail * info.f_frsize
    if free < needed:
        raise EdgePsloraError(
            str(folder),
            expected=f"{needed} bytes free",
            found=f"{free} bytes free",
            remedy="free some space or choose another folder; nothing was changed",
        )


@contextmanager
def storage_errors(folder: Path, name: str) -> Iterator[None]:
    """Turn an OSError into one line that names the folder."""
    try:
        yield
    except OSError as problem:
        if problem.errno in _NO_SPACE:
            remedy = "free some space, then run the same command again"
        elif problem.errno in _NO_ACCESS:
            remedy = "choose a folder that you may write to"
        else:
            remedy = "check the path and the disk, then run the same command again"
        raise EdgePsloraError(
            str(folder),
            expected=f"to be able to write {name}",
            found=problem.strerror or str(problem),
            remedy=remedy,
        ) from problem


def _copy_in_kernel(source: int, offset: int, target: int, length: int) -> int:
    """How many bytes the kernel copied; fewer than `length` if the source ends or it cannot."""
    copy = getattr(os, "copy_file_range", None)  # Linux only
    done = 0
    while copy is not None and done < length:
        try:
            count = copy(source, target, min(length - done, 1 << 30), offset_src=offset + done)
        except OSError as problem:
            if problem.errno not in _NO_COPY:
                raise
            break
        if count == 0:
            break
        done += count
    return done


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


def _fsync_path(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _alive(pid: int) -> bool:
    """Another process with that number. An earlier one with ours is dead: in a container all have it."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
