"""A file system of its own: the readable paths, read-only, and a small folder in memory. No /proc, no /sys, nothing else."""

import ctypes
import os
import struct
from collections.abc import Iterable

from .kernel import check, libc, syscall

MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE, MNT_DETACH = 2, 4, 8, 0x1000, 0x4000, 0x40000, 2
MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID = 442, -100, 0x8000, 1, 2


def enter_own_root(readable: Iterable[str], folder: str, staging: str, folder_bytes: int, folder_files: int) -> None:
    """Build the new root on the empty folder `staging`, go into it, and leave the old one; needs user and mount namespaces, Linux 5.12.

    Paths keep their names. `folder` is the only one that can be written to.
    """
    _mount("none", "/", None, MS_REC | MS_PRIVATE)
    _mount("tmpfs", staging, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    os.mkdir(staging + folder)
    for path in readable:
        _bind(path, staging + path)
    _make_read_only(staging)
    _mount("tmpfs", staging + folder, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, f"size={folder_bytes},nr_inodes={folder_files},mode=700")
    os.chdir(staging)
    check(libc.pivot_root(b".", b"."), "pivot_root")
    check(libc.umount2(b".", MNT_DETACH), "umount")
    os.chdir("/")


def _bind(path: str, target: str) -> None:
    if os.path.isdir(path):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        open(target, "a").close()
    _mount(os.path.realpath(path), target, None, MS_BIND | MS_REC)


def _mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    encoded_kind = kind.encode() if kind else None
    result = libc.mount(os.fsencode(source), os.fsencode(target), encoded_kind, ctypes.c_ulong(flags), options.encode())
    check(result, f"mount {source} on {target}")


def _make_read_only(path: str) -> None:
    """Do so for every mount below too; adding flags this way keeps those that a bind mount may not lose."""
    attributes = struct.pack("QQQQ", MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID, 0, 0, 0)
    syscall(MOUNT_SETATTR, AT_FDCWD, os.fsencode(path), AT_RECURSIVE, ctypes.create_string_buffer(attributes), len(attributes))
