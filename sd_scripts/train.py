"""Parse the options, pick family and method, run the trainer; the only place that knows which pairs exist.

Exit codes: 0 done or stopped on request, 2 something the person can put right, 3 NaN, 130 interrupted, 1 a bug.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from sd_scripts.schema.commands import (
    COMMANDS,
    Command,
    TrainConfig,
    TrainControlNetConfig,
    TrainEmbeddingConfig,
    TrainFullConfig,
    TrainLLLiteConfig,
    TrainNetworkConfig,
)
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.parse import parse

if TYPE_CHECKING:
    from sd_scripts.families.base import Family
    from sd_scripts.methods.base import Method

C = TypeVar("C", bound=TrainConfig)

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


# torch and diffusers take seconds to import: only a run that will happen pays for them, not --help or a wrong flag.
def _sd() -> Family:
    from sd_scripts.families.sd import StableDiffusion

    return StableDiffusion()


def _sdxl() -> Family:
    from sd_scripts.families.sdxl import StableDiffusionXL

    return StableDiffusionXL()


def _network(config: TrainConfig) -> Method:
    from sd_scripts.methods.network import NetworkMethod

    given = _of(TrainNetworkConfig, config)
    return NetworkMethod(given.network, given.optimizer, given.run.allow_plugins, given.saving.save_model_as)


def _full(config: TrainConfig) -> Method:
    from sd_scripts.methods.full import FullMethod

    given = _of(TrainFullConfig, config)
    dreambooth = given.command == "train_db"
    project = "dreambooth" if dreambooth else "finetuning"
    return FullMethod(
        given.full,
        given.optimizer,
        given.saving,
        trains_text=dreambooth,
        project=project,
        max_token_length=given.model.max_token_length,
    )


def _embedding(config: TrainConfig) -> Method:
    from sd_scripts.methods.embedding import EmbeddingMethod

    given = _of(TrainEmbeddingConfig, config)
    return EmbeddingMethod(given.embedding, given.optimizer, given.saving.save_model_as)


def _xti(config: TrainConfig) -> Method:
    from sd_scripts.methods.xti import XtiMethod

    given = _of(TrainEmbeddingConfig, config)
    return XtiMethod(given.embedding, given.optimizer, given.saving.save_model_as, model=given.model)


def _controlnet(config: TrainConfig) -> Method:
    from sd_scripts.methods.controlnet import ControlNetMethod

    given = _of(TrainControlNetConfig, config)
    return ControlNetMethod(given.controlnet, given.optimizer, given.saving.save_model_as)


def _lllite(config: TrainConfig) -> Method:
    from sd_scripts.methods.lllite import LLLiteMethod

    given = _of(TrainLLLiteConfig, config)
    return LLLiteMethod(given.network, given.lllite, given.optimizer, given.saving.save_model_as)


FAMILIES: dict[str, Callable[[], Family]] = {"sd": _sd, "sdxl": _sdxl}
METHODS: dict[str, Callable[[TrainConfig], Method]] = {
    "network": _network,
    "full": _full,
    "embedding": _embedding,
    "xti": _xti,
    "controlnet": _controlnet,
    "lllite": _lllite,
}


def _of(wanted: type[C], config: TrainConfig) -> C:
    if not isinstance(config, wanted):
        raise TypeError(f"{config.command} was parsed into {type(config).__name__}, not {wanted.__name__}")
    return config


def pair(command: Command, config: TrainConfig) -> tuple[Family, Method]:
    """The family and the method of a command. Raises UserError where there is no such pair."""
    if command.family not in FAMILIES or command.method not in METHODS:
        raise UserError(f"{command.name} would train {command.method} for {command.family}, which do not go together.")
    return FAMILIES[command.family](), METHODS[command.method](config)


@contextmanager
def _without_unused_packages() -> Iterator[None]:
    """Inside the block diffusers does not find two packages that it would import for nothing, a sixth of the start.

    The trainers put LoRAs into models by themselves, and 8-bit optimizers import bitsandbytes when one is chosen.
    Python finds no package whose entry is None; a program that has one already keeps it.
    """
    hidden = [name for name in ("peft", "bitsandbytes") if name not in sys.modules and "diffusers" not in sys.modules]
    absent: dict[str, Any] = dict.fromkeys(hidden)
    sys.modules.update(absent)
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


def _run(command: Command, config: TrainConfig) -> int:
    # bitsandbytes says on every CPU that a package of 4-bit kernels is missing, which nothing here uses.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    with _without_unused_packages():
        from sd_scripts.trainer.session import run_session

        family, method = pair(command, config)
    return run_session(config, family, method)


def main(name: str, argv: Sequence[str] | None = None) -> int:
    """Run a trainer command and return its exit code."""
    command = COMMANDS[name]
    try:
        config = parse(name, sys.argv[1:] if argv is None else argv)
        return _run(command, _of(TrainConfig, config))
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr, flush=True)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr, flush=True)
        return EXIT_INTERRUPTED
