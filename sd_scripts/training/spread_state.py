"""Training states of runs whose weights or optimizer lie spread over several processes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from sd_scripts.schema.errors import UserError
from sd_scripts.training import state_files

SHARDS = "deepspeed"  # the folder inside a state with every process's share
WRITTEN = "whole_"  # an empty file for each process whose share is complete


class Whole(Protocol):
    """Weights and optimizer state that lie spread over the processes, put together and spread again."""

    def weights(self) -> dict[str, Tensor]:
        """By their names in the trained module. Called in every process; only the first one's answer counts."""

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Take them over; called in every process with the same."""

    def optimizer(self) -> dict[str, Any]:
        """The `state_dict` that one process would have. Called in every process; only the first one's answer counts."""

    def load_optimizer(self, state: dict[str, Any]) -> None:
        """Take it over; called in every process with the same."""


class Shards(Protocol):
    """An optimizer of which every process writes its own share."""

    def weights(self) -> dict[str, Tensor]:
        """By their names in the trained module. Called in every process; only the first one's answer counts."""

    def write(self, folder: Path) -> None:
        """Write this process's share of weights and optimizer; called in every process."""

    def read(self, folder: Path) -> None:
        """Take this process's share over; called in every process."""


def load_whole(folder: Path, whole: Whole) -> None:
    """Read weights and optimizer and spread them. Raises UserError where they do not fit."""
    try:
        whole.load_weights(state_files.read_weights_of(folder))
        whole.load_optimizer(state_files.read_torch(folder / state_files.OPTIMIZER))
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise UserError(
            f"The training state '{folder}' does not fit: {error}.", "resume", "Use the same settings as before."
        ) from error


def check_shards(folder: Path, manifest: Mapping[str, Any], wanted: bool, num_processes: int) -> None:
    """The shares of several processes can be read by as many only, and by what wrote them. Raises UserError."""
    there = bool(manifest.get("shards"))
    if there != wanted:
        raise UserError(
            f"The training state '{folder}' was written {'with' if there else 'without'} DeepSpeed.",
            "resume",
            f"Go on {'with' if there else 'without'} it, or start anew from the saved weights.",
        )
    if there and manifest.get("processes") != num_processes:
        raise UserError(
            f"The training state '{folder}' is in {manifest.get('processes')} shares, but there are now "
            f"{num_processes} processes.",
            "resume",
            "Use as many as before.",
        )
