"""A file system of its own: the readable paths, read-only, and a small folder in memory. No /proc, no /sys, nothing else."""

import ctypes
import os
import re
from collections.abc import Iterable

from .kernel import check, libc

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 8, 0x20, 0x1000, 0x4000, 0x40000
MNT_DETACH = 2
KEPT_OPTIONS = {"nosuid": MS_NOSUID, "nodev": MS_NODEV, "noexec": MS_NOEXEC}  # a user namespace may not take these away


def enter_own_root(readable: Iterable[str], folder: str, staging: str, folder_bytes: int, folder_files: int) -> None:
    """Build the new root on the empty folder `staging`, go into it, and leave the old one; needs namespaces for users and mounts.

    Paths keep their names. `folder` is the only one that can be written to.
    """
    staging = os.path.realpath(staging)
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
    """Do so for every mount at or below a path: a folder that is bound brings the mounts inside it along."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        mounts = [line.split(" ")[4:6] for line in file]
    for point, options in mounts:
        point = re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), point)  # "\040" is a space
        if f"{point}/".startswith(f"{path}/"):
            kept = sum(flag for option, flag in KEPT_OPTIONS.items() if option in options.split(","))
            _mount("none", point, None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | kept)
