"""The levels of protection, how each is started, and which of them holds here."""

import functools
import os
import shutil
import site
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BOX = Path(__file__).parent / "box"
OWN_FOLDER = "/sandbox"  # the writable one where the sandbox has a file system of its own
FOLDER_BYTES, FOLDER_FILES = 16 * 1024**2, 256  # most that it may hold
SYSTEM_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/share/zoneinfo", "/etc/ld.so.cache", "/nix/store")
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")


class SandboxError(OSError):
    """Generated code cannot be run: there is no sandbox strong enough, or it does not start."""


@dataclass(frozen=True)
class Sandbox:
    """A level and the layers inside it.

    Args:
        level: "bubblewrap" or "namespaces" (own file system, network, processes), "filters" (Landlock and seccomp alone),
            or "limits" (rlimits alone), the only one that is weak.
        landlock: files are restricted by Landlock.
        seccomp: system calls are filtered.
    """

    level: str
    landlock: bool = True
    seccomp: bool = True

    @property
    def is_weak(self) -> bool:
        return self.level == "limits"

    def command(self, verdict: int) -> list[str]:
        """Write the command that starts the box, which writes its messages to the descriptor `verdict`."""
        boot = f"import sys; sys.path.insert(0, {str(BOX.parent)!r}); from box.main import main; main({verdict})"
        python = [os.path.realpath(sys.executable), "-I", "-S", "-c", boot]
        if self.level == "bubblewrap":
            return [_program("bwrap"), *_bubblewrap_options(), *python]
        if self.level == "namespaces":
            spaces = ["--user", "--map-root-user", "--mount", "--net", "--ipc", "--uts", "--pid", "--fork", "--kill-child=KILL"]
            return [_program("unshare"), *spaces, *python]
        return python

    def setting(self, folder: str) -> dict:
        """Return what the box has to know of its surroundings; `folder` is an empty one that it may have."""
        own_folder = self.level in ("bubblewrap", "namespaces")
        return {
            "landlock": self.landlock,
            "seccomp": self.seccomp,
            "readable": readable_paths(),
            "packages": package_folders(),
            "folder": OWN_FOLDER if own_folder else folder,
            "folder_bytes": FOLDER_BYTES,
            "folder_files": FOLDER_FILES,
            "staging": folder if self.level == "namespaces" else None,
        }


# The strongest first; within one, with as many layers as there are.
SANDBOXES = (
    Sandbox("bubblewrap"),
    Sandbox("bubblewrap", landlock=False),
    Sandbox("namespaces"),
    Sandbox("namespaces", landlock=False),
    Sandbox("filters"),
    Sandbox("limits", landlock=False),
    Sandbox("limits", landlock=False, seccomp=False),
)


@functools.cache
def readable_paths() -> list[str]:
    """List what Python reads: itself, its packages, the system's libraries, four devices. A path below another is left out."""
    python = [os.path.realpath(sys.executable), f"{sys.base_exec_prefix}/lib", *map(sysconfig.get_path, ("stdlib", "platstdlib"))]
    paths = {*python, *package_folders(), str(BOX), *SYSTEM_LIBRARIES, *DEVICES}
    there = [path for path in sorted(paths) if os.path.exists(path)]
    return [path for path in there if not any(path.startswith(f"{other}/") for other in there)]


@functools.cache
def package_folders() -> list[str]:
    """List the folders that installed packages lie in; those that an editable install or a .pth file adds are not visible."""
    folders = [*site.getsitepackages(), *([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])]
    return [folder for folder in folders if os.path.isdir(folder)]


def _bubblewrap_options() -> Iterator[str]:
    yield from ("--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL")
    for path in readable_paths():
        yield from ("--dev-bind" if path in DEVICES else "--ro-bind", os.path.realpath(path), path)
    yield from ("--size", str(FOLDER_BYTES), "--perms", "0700", "--tmpfs", OWN_FOLDER, "--remount-ro", "/")


def _program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise SandboxError(f"{name} is not installed")
    return path
