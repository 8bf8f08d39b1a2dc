"""Where a journal may live, and files that only their owner can read."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

from ollama_batch._points import reached
from ollama_batch.errors import JournalError

# WAL needs shared memory and locks that hold between processes; on these file systems one of both does not.
_UNSAFE = frozenset(
    {
        *("nfs", "nfs4", "cifs", "smb", "smb2", "smb3", "smbfs", "9p", "afs", "ncpfs", "davfs", "webdav"),
        *("fuse.sshfs", "fuse.rclone", "fuse.s3fs", "fuse.gcsfuse", "fuse.davfs", "fuse.glusterfs"),
        *("osxfuse", "macfuse", "fuse.goofys", "fuse.mount-s3", "vboxsf", "prl_fs"),
    }
)
_OPEN = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


_SQLITE = b"SQLite format 3\x00"


def is_database(path: Path) -> bool:
    """Whether the file `path` is one of SQLite's, as every journal is, whatever its name. Raises OSError."""
    with path.open("rb") as file:
        return file.read(len(_SQLITE)) == _SQLITE


def file_system(folder: Path) -> str | None:
    """The type of the file system that holds `folder` ("ext4"), or None if the system does not tell."""
    import psutil

    real = folder.resolve()
    best: tuple[int, str] | None = None
    for part in psutil.disk_partitions(all=True):
        mount = Path(part.mountpoint)
        if real == mount or mount in real.parents:
            remote = sys.platform == "win32" and "remote" in part.opts.split(",")
            # The last of equally long mount points is the one mounted on top.
            if best is None or len(mount.parts) >= best[0]:
                best = len(mount.parts), "network drive" if remote else part.fstype
    if best is None and str(real).startswith("\\\\"):
        return "network drive"
    return None if best is None else best[1]


def check_place(path: Path) -> None:
    """Make sure that a journal can safely be at `path`, whether it exists or not.

    Raises JournalError for a missing folder, a network file system, a directory, a symbolic link or
    any other file that is not a regular one, at `path` or at the names SQLite uses beside it.
    """
    if not path.parent.is_dir():
        raise JournalError(
            f"the folder of the journal {path} does not exist: create {path.parent}", str(path)
        )
    kind = file_system(path.parent)
    if kind is not None and (kind.lower() in _UNSAFE or kind == "network drive"):
        raise JournalError(
            f"the journal {path} would be on a network file system ({kind}), where SQLite's log is not safe: "
            f"put it on a local disk (journal=...)",
            str(path),
        )
    for beside in ("", "-wal", "-shm", "-journal", ".lock", ".new"):
        check_regular(path.with_name(path.name + beside), path)


def check_regular(file: Path, path: Path) -> bool:
    """Whether `file` exists; JournalError if it is anything but a regular file."""
    try:
        mode = file.lstat().st_mode
    except FileNotFoundError:
        return False
    except OSError as exc:
        raise JournalError(f"the journal {path} cannot be opened: {exc.strerror}", str(path)) from exc
    if stat.S_ISREG(mode):
        return True
    what = (
        "a symbolic link"
        if stat.S_ISLNK(mode)
        else "a directory"
        if stat.S_ISDIR(mode)
        else "no regular file"
    )
    advice = "give the file itself" if stat.S_ISLNK(mode) else "choose another name"
    raise JournalError(f"{file} is {what} and is not followed or opened as a journal: {advice}", str(path))


def create_private(path: Path, *, exclusive: bool = True) -> int:
    """A descriptor to write `path`, which only its owner can read, whatever the umask.

    With `exclusive` the file must not exist. A symbolic link is never followed.
    """
    reached("file.create")
    flags = os.O_RDWR | os.O_CREAT | _OPEN | (os.O_EXCL if exclusive else 0)
    fd = os.open(path, flags, 0o600)
    if sys.platform != "win32":
        os.fchmod(fd, 0o600)
    return fd


def remove_file(path: Path) -> None:
    """Remove `path` if it is there."""
    reached("file.remove")
    path.unlink(missing_ok=True)


def put_in_place(temporary: Path, final: Path) -> None:
    """Give a synced `temporary` file its `final` name: durable, and never half there."""
    reached("file.before_rename")
    temporary.replace(final)
    reached("file.after_rename")
    sync_folder(final.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable, where the system knows how to."""
    if sys.platform == "win32":
        return
    reached("folder.before_sync")
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    reached("folder.after_sync")


def sync_file(fd: int) -> None:
    """Make the content behind `fd` durable."""
    reached("file.before_sync")
    os.fsync(fd)
    reached("file.after_sync")
