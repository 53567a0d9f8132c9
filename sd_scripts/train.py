"""Parse the options, pick family and method, run the trainer; the only place that knows which pairs exist.

Exit codes: 0 done or stopped on request, 2 something the person can put right, 3 NaN, 130 interrupted, 1 a bug.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sd_scripts.schema.commands import COMMANDS, Command, TrainNetworkConfig
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.parse import parse

if TYPE_CHECKING:
    from sd_scripts.families.base import Family
    from sd_scripts.methods.base import Method

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


# torch and diffusers take seconds to import: only a run that will happen pays for them, not --help or a wrong flag.
def _sd() -> Family:
    from sd_scripts.families.sd import StableDiffusion

    return StableDiffusion()


def _network(config: TrainNetworkConfig) -> Method:
    from sd_scripts.methods.network import NetworkMethod

    return NetworkMethod(config.network, config.optimizer, config.run.allow_plugins)


FAMILIES: dict[str, Callable[[], Family]] = {"sd": _sd}
METHODS: dict[str, Callable[[TrainNetworkConfig], Method]] = {"network": _network}


def pair(command: Command, config: TrainNetworkConfig) -> tuple[Family, Method]:
    """The family and the method of a command. Raises UserError where there is no such pair."""
    if command.family not in FAMILIES or command.method not in METHODS:
        raise UserError(f"{command.name} would train {command.method} for {command.family}, which do not go together.")
    return FAMILIES[command.family](), METHODS[command.method](config)


def _run(command: Command, config: TrainNetworkConfig) -> int:
    # bitsandbytes says on every CPU that a package of 4-bit kernels is missing, which nothing here uses.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from sd_scripts.trainer.session import run_session

    return run_session(config, *pair(command, config))


def main(name: str, argv: Sequence[str] | None = None) -> int:
    """Run a trainer command and return its exit code."""
    command = COMMANDS[name]
    try:
        config = parse(name, sys.argv[1:] if argv is None else argv)
        if not isinstance(config, TrainNetworkConfig):
            raise TypeError(f"{name} was parsed into {type(config).__name__}")
        return _run(command, config)
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr, flush=True)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr, flush=True)
        return EXIT_INTERRUPTED
