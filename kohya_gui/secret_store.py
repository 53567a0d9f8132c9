"""Tokens and keys that a trainer needs: kept in one file only its owner may read, handed over by environment only."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

FILE = ".secrets.json"
# option -> environment variable that the library behind it reads
VARIABLES = {"wandb_api_key": "WANDB_API_KEY", "huggingface_token": "HF_TOKEN"}


class SecretStore:
    """Environment variable -> value, in a file of mode 0600 in the jobs folder. Never shown, never logged."""

    def __init__(self, root: Path) -> None:
        self.path = root / FILE

    def _read(self) -> dict[str, str]:
        try:
            stored = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return {str(k): str(v) for k, v in stored.items()} if isinstance(stored, dict) else {}

    def keep(self, secrets: Mapping[str, str]) -> None:
        """Remember these variables; a newer value replaces an older one."""
        if not secrets:
            return
        temporary = self.path.with_name(f"{FILE}.{os.getpid()}.tmp")
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump({**self._read(), **secrets}, file)
        os.replace(temporary, self.path)

    def environment(self, names: Iterable[str]) -> dict[str, str]:
        """The wanted variables that are known."""
        stored = self._read()
        return {name: stored[name] for name in names if name in stored}

    def values(self, names: Iterable[str]) -> dict[str, str]:
        """The same as option values."""
        known = self.environment(names)
        return {key: known[name] for key, name in VARIABLES.items() if name in known}

    def forget(self) -> None:
        """Delete all of them."""
        self.path.unlink(missing_ok=True)
