"""Checkpoints that appear whole or not at all, and are checked before they are used.

A checkpoint is written into a staging folder, forced to disk, listed with its checksums in manifest.json, and only then renamed to
checkpoint-<step>. A folder of that name is therefore complete, unless something damaged it later: then its checksums tell.
"""

import hashlib
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from safetensors import SafetensorError

logger = logging.getLogger(__name__)

STAGING = "_saving"  # uploads to the Hub leave names with a leading underscore out
MANIFEST = "manifest.json"
_NAME = re.compile(r"checkpoint-(\d+)")


class CheckpointError(ValueError):
    """Checkpoints that cannot be resumed from, with what is wrong and what to do."""


def staging_folder(output_dir: str | Path, step: int) -> Path:
    return Path(output_dir) / STAGING / f"checkpoint-{step}"


def attempt(write: Callable[[], object]) -> str | None:
    """Write something, and return why that failed; the writers report a full disk each with an exception of its own."""
    try:
        write()
    except (OSError, SafetensorError, RuntimeError) as error:
        return " ".join(str(error).split()) or type(error).__name__
    return None


def publish(staged: Path, facts: dict) -> Path:
    """Turn a staged folder into a checkpoint, in place of one of the same step.

    Args:
        facts: what the manifest says beside the files: the run, and what resuming compares.
    """
    target = staged.parent.parent / staged.name
    files = sorted(path for path in staged.rglob("*") if path.is_file())
    with ThreadPoolExecutor() as threads:
        entries = dict(zip((str(path.relative_to(staged)) for path in files), threads.map(_sync_and_describe, files), strict=True))
    manifest = staged / MANIFEST
    manifest.write_text(json.dumps({**facts, "sequence": next_sequence(target.parent), "files": entries}, indent=1))
    _sync(manifest)
    for folder in {path.parent for path in files} | {staged}:
        _sync(folder)
    move_away(target)
    staged.rename(target)
    _sync(target.parent)
    clear_staging(target.parent)
    return target


def find_damage(checkpoint: Path) -> str | None:
    """Compare a checkpoint with its manifest; None where everything is as it was written."""
    manifest = read_manifest(checkpoint)
    if manifest is None:
        return f"it has no {MANIFEST} that can be read"
    for name, entry in manifest["files"].items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != entry["bytes"]:
            return f"{name} has {path.stat().st_size:,} bytes, but was written with {entry['bytes']:,}"
    with ThreadPoolExecutor() as threads:
        sums = threads.map(_checksum, [checkpoint / name for name in manifest["files"]])
    damaged = [name for (name, entry), found in zip(manifest["files"].items(), sums, strict=True) if found != entry["sha256"]]
    return f"{damaged[0]} does not have the checksum that it was written with" if damaged else None


def read_manifest(checkpoint: Path) -> dict | None:
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text())
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and isinstance(manifest.get("files"), dict) else None


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """List the checkpoint folders, the one written last first; one whose manifest cannot be read may be that, and comes before all."""
    folders = [path for path in Path(output_dir).glob("checkpoint-*") if path.is_dir() and _NAME.fullmatch(path.name)]
    return sorted(folders, key=lambda path: (_sequence(path) or math.inf, int(_NAME.fullmatch(path.name)[1])), reverse=True)


def choose_checkpoint(output_dir: str | Path, wanted: str | bool | None) -> Path | None:
    """Find the checkpoint to resume from, None to begin anew.

    Args:
        wanted: True for the last undamaged checkpoint in output_dir if there is any, a path for that one, None or False for none.

    Raises:
        CheckpointError: where the checkpoint asked for, or every one, is damaged; where output_dir holds those of another run.
    """
    finish_publishing(output_dir)
    present = list_checkpoints(output_dir)
    if not wanted:
        if present:
            raise CheckpointError(
                f"{output_dir} holds {_names(present)} of an earlier run. Go on with it (resume_from_checkpoint=true), move it away, "
                "or set another output_dir."
            )
        return None
    chosen = _last_undamaged(present) if wanted is True else _undamaged(Path(wanted))
    if wanted is True and chosen is None:
        logger.warning("%s holds no checkpoint yet: the run begins at its first step", output_dir)
    if chosen is not None:
        _check_runs(output_dir, present, chosen)
    return chosen


def rotate(output_dir: str | Path, limit: int | None, best: str | None) -> None:
    """Delete the oldest complete checkpoints until `limit` are left, but not the last and not the best; broken ones are not counted."""
    if limit is None or limit <= 0:
        return
    complete = [path for path in list_checkpoints(output_dir) if is_complete(path)]
    kept = [path for path in complete if path == complete[0] or (best is not None and path.resolve() == Path(best).resolve())]
    others = [path for path in complete if path not in kept]
    for path in others[max(limit - len(kept), 0) :]:
        move_away(path)
    clear_staging(output_dir)


def is_complete(checkpoint: Path) -> bool:
    """Tell whether every file is there in its full size, without reading them."""
    manifest = read_manifest(checkpoint)
    if manifest is None:
        return False
    sizes = {name: (checkpoint / name).stat().st_size for name in manifest["files"] if (checkpoint / name).is_file()}
    return sizes == {name: entry["bytes"] for name, entry in manifest["files"].items()}


def finish_publishing(output_dir: str | Path) -> None:
    """Clean up after a killed run: a staged checkpoint that was complete takes its place, and the rest is deleted."""
    staging = Path(output_dir) / STAGING
    for staged in sorted(staging.glob("checkpoint-*")) if staging.is_dir() else []:
        target = staging.parent / staged.name
        if not target.exists() and find_damage(staged) is None:
            staged.rename(target)
    clear_staging(output_dir)


def clear_staging(output_dir: str | Path) -> None:
    shutil.rmtree(Path(output_dir) / STAGING, ignore_errors=True)


def move_away(checkpoint: Path) -> None:
    """Take a checkpoint out of sight in one step, so that a kill during its deletion leaves no half of it."""
    if checkpoint.exists():
        trash = checkpoint.parent / STAGING
        trash.mkdir(exist_ok=True)
        checkpoint.rename(trash / f"old-{checkpoint.name}")


def next_sequence(output_dir: Path) -> int:
    return 1 + max((_sequence(path) or 0 for path in list_checkpoints(output_dir)), default=0)


def _undamaged(checkpoint: Path) -> Path:
    if not checkpoint.is_dir():
        raise CheckpointError(f"resume_from_checkpoint names {checkpoint}, which is not a folder.")
    damage = find_damage(checkpoint) if (checkpoint / MANIFEST).exists() else None  # Trainer's own have no manifest
    if damage is not None:
        raise CheckpointError(f"{checkpoint} is damaged: {damage}. Set resume_from_checkpoint=true to go on from the last good one.")
    return checkpoint


def _last_undamaged(checkpoints: list[Path]) -> Path | None:
    for checkpoint in checkpoints:
        damage = find_damage(checkpoint)
        if damage is None:
            return checkpoint
        logger.warning("%s cannot be used: %s. Looking for the one before it", checkpoint, damage)
    if checkpoints:
        raise CheckpointError(f"None of {_names(checkpoints)} in {checkpoints[0].parent} can be used. Move them away to begin anew.")
    return None


def _check_runs(output_dir: str | Path, present: list[Path], chosen: Path) -> None:
    run = _run(chosen)
    others = [path for path in present if _run(path) not in (None, run)]
    if others:
        raise CheckpointError(
            f"{output_dir} holds checkpoints of different runs: {_names(others)} and {chosen.name} do not belong together. "
            "Move those of one run away, or set another output_dir."
        )


def _run(checkpoint: Path) -> str | None:
    return (read_manifest(checkpoint) or {}).get("run")


def _sequence(checkpoint: Path) -> int | None:
    return (read_manifest(checkpoint) or {}).get("sequence")


def _names(checkpoints: list[Path]) -> str:
    return ", ".join(path.name for path in checkpoints)


def _sync_and_describe(path: Path) -> dict:
    _sync(path)
    return {"bytes": path.stat().st_size, "sha256": _checksum(path)}


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Force a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
