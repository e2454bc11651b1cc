"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import time
import uuid
from pathlib import Path

STALE_SECONDS = 3600.0


def write_atomically(path: Path, data: bytes) -> None:
    """Write to a temporary file beside ``path``, then rename it: a kill or a full disk leaves what was there before.

    Raises:
        OSError: the file can't be written; the temporary one is removed.

    """
    partial = path.with_suffix(f".{uuid.uuid4().hex}.partial")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def remove_stale(folder: Path) -> None:
    """Remove the temporary files that killed writers left in a folder: those that nobody has touched for an hour."""
    for partial in folder.glob("*.partial"):
        with contextlib.suppress(OSError):  # renamed meanwhile, or not ours to remove: it is in nobody's way
            if time.time() - partial.stat().st_mtime > STALE_SECONDS:
                partial.unlink()
