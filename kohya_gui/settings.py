"""The page's own memory: start-up defaults from config.toml, folders used last, and how fast this machine trains."""

import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kohya_gui.migrate import ReportLine, modernise
from kohya_gui.supervisor import write_json
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.fields import complete

# tables of config.toml whose keys are options of the training tabs, in the order in which they count
_TABLES = (
    "model",
    "folders",
    "accelerate_launch",
    "basic",
    "advanced",
    "samples",
    "network",
    "training",
    "save",
    "sdxl",
)
_PREFIXED = ("metadata", "huggingface")
_FOLDER_KEYS = {
    "model.models_dir": "pretrained_model_name_or_path",
    "advanced.vae_dir": "vae",
    "advanced.state_dir": "resume",
    "advanced.log_tracker_config_dir": "log_tracker_config",
    "config_dir": "config_file",
    "configuration.config_dir": "config_file",
}
MOST_SPEEDS = 500


@dataclass(frozen=True)
class Settings:
    """What config.toml says: first values of the form, folders where the browse dialog starts, folders to open up."""

    values: dict[str, Any] = field(default_factory=dict)
    start_folders: dict[str, str] = field(default_factory=dict)
    allowed_paths: list[str] = field(default_factory=list)
    report: list[ReportLine] = field(default_factory=list)


def load_settings(path: Path, command: str = "train_network") -> Settings:
    """The start-up settings in a config.toml of kohya_ss or of ours; a missing file holds none.

    Raises:
        UserError: if the file is there but cannot be read as TOML.
    """
    if not path.is_file():
        return Settings()
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        hint = "Write Windows paths in single quotes, as 'C:\\pictures'."
        raise UserError(f"The settings file {path} cannot be read: {error}.", hint=hint) from error
    raw: dict[str, Any] = {}
    for table in _TABLES:
        raw |= _table(content, table)
    for table in _PREFIXED:
        raw |= {f"{table}_{key.removeprefix(table + '_')}": value for key, value in _table(content, table).items()}
    raw |= {key: value for key, value in content.items() if not isinstance(value, dict)}
    folders = {}
    for name, key in _FOLDER_KEYS.items():
        table, _, last = name.rpartition(".")
        value = _table(content, table).get(last) if table else content.get(last)
        if isinstance(value, str) and value:
            folders[key] = value
        raw.pop(last, None)
    draft = modernise(raw, command)
    draft.values.pop("max_train_steps", None) if draft.values.get("max_train_steps") is None else None
    allowed = _table(content, "server").get("allowed_paths")
    paths = [item for item in allowed if isinstance(item, str)] if isinstance(allowed, list) else []
    return Settings(draft.values, folders, paths, draft.report)


def _table(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = content.get(name)
    return dict(found) if isinstance(found, dict) else {}


class Remembered:
    """Small facts that the page keeps between starts, such as the folder used last for each field."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def all(self) -> dict[str, Any]:
        """Everything remembered."""
        try:
            stored = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return stored if isinstance(stored, dict) else {}

    def get(self, name: str, default: Any = None) -> Any:
        """One fact."""
        return self.all().get(name, default)

    def put(self, name: str, value: Any) -> None:
        """Remember a fact; a disk that is full or read-only is no reason to stop working."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, {**self.all(), name: value})
        except OSError:
            return

    def last_folder(self, key: str) -> str:
        """The folder last used for a field, or the one used last at all."""
        folders = self.get("folders", {})
        return str(folders.get(key) or folders.get("") or "") if isinstance(folders, dict) else ""

    def use_folder(self, key: str, folder: str) -> None:
        """Remember the folder used for a field."""
        folders = self.get("folders", {})
        self.put("folders", {**(folders if isinstance(folders, dict) else {}), key: folder, "": folder})


@dataclass(frozen=True)
class Speed:
    """How a past job of this machine ran: what decides its speed, seconds a step, and seconds before the first step."""

    work: float
    traits: str
    seconds: float
    overhead: float


def traits_of(values: Mapping[str, Any]) -> tuple[float, str]:
    """Pictures times area in one step (one 512x512 picture is 1), and the settings that matter most for speed."""
    full = complete("train_network", {key: value for key, value in values.items() if value is not None})
    sides = [
        int(part)
        for part in str(full.get("resolution") or "512").replace("x", ",").split(",")
        if part.strip().isdigit()
    ]
    area = (sides[0] * sides[-1] if sides else 512 * 512) / (512 * 512)
    work = area * int(full["train_batch_size"]) * int(full["gradient_accumulation_steps"])
    names = ("mixed_precision", "gradient_checkpointing", "network_train_unet_only", "LoRA_type", "fp8_base", "gpu_ids")
    return work, json.dumps(
        [full.get(name) for name in names] + [os.path.basename(str(full.get("pretrained_model_name_or_path")))]
    )


class SpeedHistory:
    """Speeds of this machine's finished jobs, in a file that outlives them."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def _stored(self) -> dict[str, Any]:
        return Remembered(self.path).all()

    def known(self) -> set[str]:
        """Ids of the jobs that are in the file."""
        return set(self._stored())

    def add(self, job_id: str, values: Mapping[str, Any], seconds: float, overhead: float) -> None:
        """Remember a job's seconds a step and the seconds before its first step."""
        work, traits = traits_of(values)
        stored = self._stored()
        stored[job_id] = {"work": work, "traits": traits, "seconds": seconds, "overhead": overhead}
        kept = dict(list(stored.items())[-MOST_SPEEDS:])
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, kept)

    def seconds(self, values: Mapping[str, Any], steps: int) -> tuple[float, int] | None:
        """About how many seconds a run takes, and from how many past jobs that is known; None without a similar job."""
        work, traits = traits_of(values)
        similar = [item for item in self._speeds() if item.traits == traits and 0.5 <= work / max(item.work, 1e-9) <= 2]
        if not similar:
            return None
        recent = similar[-5:]
        each = sum(item.seconds / item.work for item in recent) / len(recent) * work
        return each * steps + sum(item.overhead for item in recent) / len(recent), len(recent)

    def _speeds(self) -> list[Speed]:
        found = []
        for item in self._stored().values():
            if isinstance(item, dict) and all(
                isinstance(item.get(k), int | float) for k in ("work", "seconds", "overhead")
            ):
                found.append(Speed(item["work"], str(item.get("traits")), item["seconds"], item["overhead"]))
        return found
