"""Small files that are kept between runs: where they lie, and how they are read and replaced."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_log = logging.getLogger("ollama_batch.state")


def user_state_dir() -> Path:
    r"""The folder for what is learned between runs; it need not exist.

    $XDG_STATE_HOME/ollama-batch where that is set, else ~/.local/state/ollama-batch, on macOS
    ~/Library/Application Support/ollama-batch, on Windows %LOCALAPPDATA%\ollama-batch.
    """
    if os.environ.get("XDG_STATE_HOME"):
        base = os.environ["XDG_STATE_HOME"]
    elif sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = str(Path.home() / "Library" / "Application Support")
    else:
        base = str(Path.home() / ".local" / "state")
    return Path(base) / "ollama-batch"


def state_folder(state_dir: str | os.PathLike[str] | None) -> Path | None:
    """The folder that an option `state_dir` stands for: "auto" is `user_state_dir()`, None is none."""
    if state_dir is None:
        return None
    return user_state_dir() if state_dir == "auto" else Path(state_dir)


def state_file(folder: str | os.PathLike[str], kind: str, key: Mapping[str, object]) -> Path:
    """The file below `folder` for what is learned of `key`, one of the `kind` of things that are."""
    text = json.dumps(key, sort_keys=True, default=str)
    return Path(folder) / kind / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def read_state(
    path: Path, *, version: int, key: Mapping[str, object] | None = None
) -> Mapping[str, Any] | None:
    """The JSON object in `path`, if it is one of format `version` and of `key`; None, with a warning, if not.

    A missing file is None without a warning: what is learned can be learned again.
    """
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        _log.warning("ignored %s, which cannot be read: %s", path, error)
        return None
    if not isinstance(found, dict) or found.get("version") != version:
        _log.warning("ignored %s, which is not of format %d", path, version)
        return None
    if key is not None and found.get("key") != key:
        _log.warning("ignored %s, which belongs to %r", path, found.get("key"))
        return None
    return found


def write_state(path: Path, data: Mapping[str, Any], *, version: int) -> bool:
    """Replace `path` by the JSON object `data`, whole or not at all; of two writers the last one wins.

    Returns False, with a warning, if it cannot be written: a run does not end for that.
    """
    text = json.dumps({"version": version, **data}, allow_nan=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            Path(scratch).replace(path)
        except BaseException:
            Path(scratch).unlink(missing_ok=True)
            raise
    except OSError as error:
        _log.warning("could not keep %s: %s", path, error)
        return False
    return True
