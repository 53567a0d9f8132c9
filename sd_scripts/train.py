"""Parse the options, pick family and method, run the trainer; the only place that knows which pairs exist.

Exit codes: 0 done or stopped on request, 2 something the person can put right, 3 NaN, 130 interrupted, 1 a bug.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from sd_scripts.families.base import Family
from sd_scripts.families.sd import StableDiffusion
from sd_scripts.methods.base import Method
from sd_scripts.methods.network import NetworkMethod
from sd_scripts.schema.commands import COMMANDS, Command, TrainNetworkConfig
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.parse import parse
from sd_scripts.trainer.session import run_session

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130

FAMILIES: dict[str, Callable[[], Family]] = {"sd": StableDiffusion}
METHODS: dict[str, Callable[[TrainNetworkConfig], Method]] = {
    "network": lambda config: NetworkMethod(config.network, config.optimizer, config.run.allow_plugins),
}


def pair(command: Command, config: TrainNetworkConfig) -> tuple[Family, Method]:
    """The family and the method of a command. Raises UserError where there is no such pair."""
    if command.family not in FAMILIES or command.method not in METHODS:
        raise UserError(f"{command.name} would train {command.method} for {command.family}, which do not go together.")
    return FAMILIES[command.family](), METHODS[command.method](config)


def main(name: str, argv: Sequence[str] | None = None) -> int:
    """Run a trainer command and return its exit code."""
    command = COMMANDS[name]
    try:
        config = parse(name, sys.argv[1:] if argv is None else argv)
        if not isinstance(config, TrainNetworkConfig):
            raise TypeError(f"{name} was parsed into {type(config).__name__}")
        return run_session(config, *pair(command, config))
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr, flush=True)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr, flush=True)
        return EXIT_INTERRUPTED
