"""Run directories: what was run, from what, with which settings; finished ones are recognised, changed ones redone.

run/
stage.json      written at the start: key, name, config, input fingerprints, versions, command
metrics.jsonl   one line a logged step
...             whatever the stage makes
manifest.json   written last: fingerprint, seconds, summary; its presence means "finished"
"""

import errno
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shlex
import shutil
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.config import Config, differences

VERSIONS_OF = ("mvp-lam", "torch", "transformers", "accelerate", "timm", "numpy", "mani-skill", "sapien")


class StageError(ValueError):
    """A stage that cannot run on what it was given."""


class StageBusyError(StageError):
    """A stage that another process works on."""


class Stage:
    """One step of the chain and its directory.

    Use as `stage = Stage.open(...)`; `if stage.is_done: return`; work in `stage.path`; `stage.finish(summary)`.
    """

    def __init__(self, path: Path, record: dict[str, Any], manifest: dict[str, Any] | None) -> None:
        self.path = path
        self.record = record
        self.manifest = manifest
        self._started = time.monotonic()
        self._lock: Any = None

    @classmethod
    def open(
        cls, path: str | Path, name: str, config: Config, inputs: dict[str, str] | None = None, is_main: bool = True
    ) -> "Stage":
        """Start, resume or recognise the stage `name` in `path`.

        The stage's key is a hash of the configuration and of the `inputs` (fingerprints by name). A directory with the
        same key is resumed, or skipped when finished; one with another key is moved aside, and what changed is said.
        Only the main process of several writes; the others pass `is_main=False` after it has opened the stage.

        Raises:
            StageError: the directory holds something that is not a stage, or another process is working in it
                (`StageBusyError`).
        """
        path = Path(path)
        wanted = {"name": name, "config": config.model_dump(mode="json"), "inputs": dict(inputs or {})}
        record = wanted | {"key": fingerprint_of(wanted), "versions": versions(), "command": shlex.join(sys.argv)}
        lock = None
        if is_main:
            lock = _claim(path)
            _set_aside_if_changed(path, record)
        stage = cls(path, record, read_manifest(path) if is_done(path) else None)
        stage._lock = lock
        if is_main and not stage.is_done:
            path.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(path)
            if (path / "stage.json").exists():
                say(f"{name}: resuming in {path}")
            record["seconds_before"] = _json(path / "stage.json").get("seconds_before", 0.0)
            write_json(path / "stage.json", record)
        elif stage.is_done and is_main:
            stage._release()
            say(f"{name}: already done in {path} ({stage.manifest['seconds']:.0f} s then), skipped")  # type: ignore[index]
        return stage

    @property
    def is_done(self) -> bool:
        """Whether the stage had finished when it was opened."""
        return self.manifest is not None

    @property
    def key(self) -> str:
        """Hash of configuration and inputs."""
        return str(self.record["key"])

    @property
    def seconds(self) -> float:
        """Time spent so far, interrupted attempts included up to their last `keep_time`."""
        return float(self.record.get("seconds_before", 0.0)) + time.monotonic() - self._started

    def keep_time(self) -> None:
        """Record the time spent, so that an interrupted attempt counts."""
        write_json(self.path / "stage.json", self.record | {"seconds_before": self.seconds})

    def finish(self, summary: dict[str, Any] | None = None, fingerprint: str | None = None) -> dict[str, Any]:
        """Write the manifest, last of all; `fingerprint` defaults to the stage's key."""
        manifest = self.record | {
            "fingerprint": fingerprint or self.key,
            "seconds": round(self.seconds, 2),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "summary": summary or {},
        }
        manifest.pop("seconds_before", None)
        write_json(self.path / "manifest.json", manifest)
        self.manifest = manifest
        self._release()
        facts = ", ".join(f"{key} {_short(value)}" for key, value in (summary or {}).items() if _is_plain(value))
        say(f"{self.record['name']}: done in {manifest['seconds']:.0f} s -> {self.path}  {facts}")
        return manifest

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def is_done(path: str | Path) -> bool:
    """Whether `path` holds a finished stage."""
    return (Path(path) / "manifest.json").is_file()


def read_manifest(path: str | Path) -> dict[str, Any]:
    """The manifest of a finished stage.

    Raises:
        StageError: there is none; the message says whether the stage was started.
    """
    file = Path(path) / "manifest.json"
    if not file.is_file():
        started = (Path(path) / "stage.json").exists()
        nowhere = "" if Path(path).is_dir() else f" (there is no such folder in {Path.cwd()})"
        state = "was started but did not finish; run its command again" if started else f"was not run{nowhere}"
        raise StageError(f"no manifest in {path}: that stage {state}")
    return _json(file)


def fingerprint_of(value: Any) -> str:
    """Twelve hexadecimal digits that identify a JSON-like value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]


def fingerprint_of_file(path: str | Path) -> str:
    """Twelve hexadecimal digits of the SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def write_json(path: str | Path, value: Any) -> None:
    """Write a value as JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, default=str))


def write_text(path: str | Path, text: str) -> None:
    """Write atomically: the file is either the old or the new one, never half of it."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def versions() -> dict[str, str]:
    """Versions of what results depend on."""
    found = {"python": platform.python_version()}
    for package in VERSIONS_OF:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def say(line: str) -> None:
    """One line to standard error, flushed."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201


def run_script(main: Callable[[], None]) -> None:
    """Run an entry point: mistakes of the caller end in one sentence and status 1, Ctrl-C in status 130.

    `MVP_LAM_TRACEBACK=1` in the environment shows where an error came from. Of several processes the sentence names
    the one, and torchrun ends with the traceback of the first that failed.
    """
    try:
        _told_to_launcher(main)()
    except KeyboardInterrupt:
        say("interrupted; the same command goes on where it stopped")
        raise SystemExit(130) from None
    except (ValueError, FileNotFoundError, PermissionError, RuntimeError, OSError) as error:
        if os.environ.get("MVP_LAM_TRACEBACK"):
            raise
        say(f"{Path(sys.argv[0]).name}: {_rank()}{_explain(error)}")
        raise SystemExit(1) from None


def _told_to_launcher(main: Callable[[], None]) -> Callable[[], Any]:
    """`main`, whose error also goes to the file that torchrun reads it from."""
    if "TORCHELASTIC_ERROR_FILE" not in os.environ:
        return main
    from torch.distributed.elastic.multiprocessing.errors import record

    return record(main)


def _rank() -> str:
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    return f"rank {os.environ.get('RANK')} of {processes}: " if processes > 1 else ""


def _explain(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = error.filename or "the output directory"
        return f"no space left on the disk of {where}; free some and run the same command again"
    return f"{error}" if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


def _claim(path: Path) -> Any:
    """A lock that the operating system drops with the process, however it ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = (path.parent / f".{path.name}.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise StageBusyError(
            f"another process is working in {path}; wait for it, or choose another directory"
        ) from None
    _locks.add(lock)
    return lock


_locks: "weakref.WeakSet[Any]" = weakref.WeakSet()
"""Those that this process holds."""


def _drop_locks() -> None:
    """A lock lasts until all that have it are gone: a forked loader worker would hold it longer than its trainer."""
    for lock in list(_locks):
        lock.close()


os.register_at_fork(after_in_child=_drop_locks)


def _leftovers(path: Path) -> list[Path]:
    """Temporary files of a process that was killed while it wrote; the lock says that it is gone."""
    # Ours are .NAME.NUMBER; safetensors writes to a .tmpXXXXXX before it renames.
    return [left for left in path.iterdir() if re.fullmatch(r"\.(.+\.\d+|tmp\w{6})", left.name)]


def _remove_leftovers(path: Path) -> None:
    for left in _leftovers(path):
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def _set_aside_if_changed(path: Path, record: dict[str, Any]) -> None:
    if path.exists() and not path.is_dir():
        raise StageError(f"{path} is a file, not a directory; choose another directory or move it away")
    if not path.exists() or len(list(path.iterdir())) == len(_leftovers(path)):
        return
    if not (path / "stage.json").exists():
        raise StageError(f"{path} exists and is not a run of this project; choose another directory or move it away")
    old = _json(path / "stage.json")
    if old.get("key") == record["key"]:
        return
    aside = path.with_name(f"{path.name}.old-{old.get('key', 'unknown')}")
    while aside.exists():
        aside = aside.with_name(aside.name + "+")
    kept = ("name", "config", "inputs")
    changed = differences({key: old.get(key) for key in kept}, {key: record[key] for key in kept})
    path.rename(aside)
    say(f"{record['name']}: runs again because {'; '.join(changed) or 'its record changed'} (old run kept in {aside})")


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text()))
    except json.JSONDecodeError as error:
        raise StageError(
            f"{path} is not valid JSON ({error}); move its directory away and run the stage again"
        ) from None


def _is_plain(value: Any) -> bool:
    return isinstance(value, int | float | str) and not isinstance(value, bool)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
