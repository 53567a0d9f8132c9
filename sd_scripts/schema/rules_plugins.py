"""Rules over classes that are named by a dotted path: code of others runs only where that was allowed at the start.

A saved form or a TOML file may come from anybody, and importing a module runs it.
"""

from collections.abc import Collection

from .finding import Finding, Rule, Values, error, rule
from .loratypes import LYCORIS, OWN_NETWORKS

OPTIMIZER_PACKAGES = (
    "torch", "transformers", "bitsandbytes", "lion_pytorch", "dadaptation", "prodigyopt", "prodigyplus", "schedulefree",
    "pytorch_optimizer", "came_pytorch",
)  # fmt: skip
SCHEDULER_PACKAGES = ("torch", "transformers", "diffusers", "pytorch_optimizer")
# as people write them, and by their full path
NETWORK_MODULES = (*OWN_NETWORKS, LYCORIS, *(f"sd_scripts.{name}" for name in OWN_NETWORKS))


def _foreign(values: Values, key: str, known: bool, allowed: Collection[str]) -> Finding | None:
    if known or values["allow_plugins"]:
        return None
    return error(
        key,
        f"{key} is {str(values[key])[:200]!r}, which is code of somebody else; known are {', '.join(allowed)}.",
        "If you trust it, start with --allow_plugins.",
    )


@rule("optimizer_type")
def foreign_optimizer(values: Values) -> Finding | None:
    """An optimizer named by its path is of a known package."""
    package, dot, _ = str(values["optimizer_type"] or "").partition(".")
    return _foreign(values, "optimizer_type", not dot or package in OPTIMIZER_PACKAGES, OPTIMIZER_PACKAGES)


@rule("lr_scheduler_type")
def foreign_scheduler(values: Values) -> Finding | None:
    """A scheduler named by its path is of a known package."""
    package, dot, _ = str(values["lr_scheduler_type"] or "").partition(".")
    return _foreign(values, "lr_scheduler_type", not dot or package in SCHEDULER_PACKAGES, SCHEDULER_PACKAGES)


@rule("network_module")
def foreign_network(values: Values) -> Finding | None:
    """A network's module is one of those that are known."""
    module = str(values["network_module"] or "")
    known = not module or module in NETWORK_MODULES
    return _foreign(values, "network_module", known, (*OWN_NETWORKS, LYCORIS))


RULES: tuple[Rule, ...] = (foreign_optimizer, foreign_scheduler, foreign_network)
