"""Tokens and keys that a trainer needs: kept job by job in files only their owner may read, handed over by environment
only."""

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

FOLDER = ".secrets"
# where earlier versions kept one value for all jobs
SHARED = ".secrets.json"
# option -> environment variable that the library behind it reads
VARIABLES = {"wandb_api_key": "WANDB_API_KEY", "huggingface_token": "HF_TOKEN"}
_ID = re.compile(r"[0-9a-f]{8}")


class SecretStore:
    """Job -> environment variable -> value, in files of mode 0600 beside the job folders. Never shown, never logged.

    They lie outside the job folders, since these are what people look into, copy and send to others.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def _file(self, job: str) -> Path:
        if not _ID.fullmatch(job):
            raise ValueError(f"{job!r} is no id of a job")
        return self.root / FOLDER / f"{job}.json"

    def keep(self, job: str, secrets: Mapping[str, str]) -> None:
        """Remember the variables of a job, in place of those it had.

        Raises:
            OSError: if the disk does not take it.
        """
        if not secrets:
            self.forget(job)
            return
        target = self._file(job)
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(dict(secrets), file)
        os.replace(temporary, target)

    def environment(self, job: str, names: Iterable[str]) -> dict[str, str]:
        """The wanted variables of a job that are known."""
        stored = {**_read(self.root / SHARED), **_read(self._file(job))}
        return {name: stored[name] for name in names if name in stored}

    def values(self, job: str, names: Iterable[str]) -> dict[str, str]:
        """The same as option values."""
        known = self.environment(job, names)
        return {key: known[name] for key, name in VARIABLES.items() if name in known}

    def forget(self, job: str) -> None:
        """Delete those of a job."""
        self._file(job).unlink(missing_ok=True)


def _read(path: Path) -> dict[str, str]:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(name): str(value) for name, value in stored.items()} if isinstance(stored, dict) else {}
