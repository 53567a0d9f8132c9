"""A network's module and arguments, as trainers and files name them -> the page's LoRA type and its settings."""

from collections.abc import Iterable
from typing import Any

from kohya_gui.draft import Draft
from sd_scripts.schema.loratypes import LORA_TYPES

_LYCORIS = "lycoris.kohya"
_ALGORITHMS = {"lora": "locon", "native": "full", "oft": "diag-oft"}
# our own modules, by their full path
_OWN = "sd_scripts."


def kind_of(module: str, args: dict[str, str]) -> str:
    """The LoRA type of this module with these arguments; Custom where the page has none for it."""
    module = module.removeprefix(_OWN)
    if module == "networks.lora":
        return "Kohya LoCon" if "conv_dim" in args else "Standard"
    if module == _LYCORIS:
        algo = str(args.get("algo") or "lora").lower()
        fixed = (f"algo={_ALGORITHMS.get(algo, algo)}",)
        return next((name for name, kind in LORA_TYPES.items() if kind.fixed == fixed), "Custom")
    return next((name for name, kind in LORA_TYPES.items() if kind.module == module and not kind.fixed), "Custom")


def split(draft: Draft, module: str, args: Any) -> None:
    """Put the LoRA type, its settings and what is left of the arguments into the draft's raw keys.

    Args:
        draft: of the LoRA tab; keys that it has already stay.
        module: as `network_module`.
        args: "name=value" items, or a table of names and values.
    """
    named = _table(args)
    name = kind_of(module, named)
    kind = LORA_TYPES[name]
    made: dict[str, Any] = {"LoRA_type": name}
    if kind.module is None:
        made["network_module"] = module
    else:
        named.pop("algo", None) if kind.fixed else None
        for key, argument in kind.args:
            if argument in named:
                made[key] = named.pop(argument)
    if named:
        made["network_args"] = [f"{argument}={value}" for argument, value in named.items()]
    for key, value in made.items():
        draft.raw.setdefault(key, value)


def _table(args: Any) -> dict[str, str]:
    if isinstance(args, dict):
        pairs: Iterable[tuple[Any, Any]] = args.items()
    elif isinstance(args, list):
        pairs = (str(item).partition("=")[::2] for item in args)
    else:
        pairs = ()
    return {str(name): str(value) for name, value in pairs if value not in (None, "None")}
