"""Rules over LyCORIS: what it refuses, what it ignores, and what would train something else than the file holds."""

from collections.abc import Mapping

from .errors import UserError
from .finding import Finding, Rule, Values, error, rule, warning
from .loratypes import LORA_TYPES, LYCORIS
from .lycoris import Settings, butterfly_refusal, read_settings, refusal, remarks

_WITHOUT_NORMS = ("full", "ia3", "tlora")


def _page_keys(values: Values) -> Mapping[str, str]:
    """The page's own fields of the chosen kind of LyCORIS: argument -> option; empty for another kind."""
    kind = LORA_TYPES.get(str(values["LoRA_type"]))
    return {argument: key for key, argument in kind.args} if kind is not None and kind.module == LYCORIS else {}


def _arguments(values: Values) -> dict[str, str]:
    """The arguments as they are sent: from the page's fields, then those that were written out."""
    found = {}
    keys = _page_keys(values)
    if keys:
        items = [*LORA_TYPES[values["LoRA_type"]].fixed]
        for argument, key in keys.items():
            if values.get(key) not in (None, False, ""):
                items.append(f"{argument}={values[key]}")
    else:
        items = []
    for item in [*items, *(values["network_args"] or [])]:
        name, equals, value = str(item).partition("=")
        if equals:
            found[name.strip()] = value.strip()
    return found


def _settings(values: Values) -> Settings | None:
    """What LyCORIS is to do; None for another network, or for arguments that cannot be read."""
    if values["network_module"] != LYCORIS:
        return None
    try:
        return read_settings(_arguments(values))
    except UserError:
        return None


def _key(values: Values, argument: str) -> str:
    """The option to mark for an argument."""
    return argument if argument.startswith("network_") else _page_keys(values).get(argument, "network_args")


@rule("network_module", "LoRA_type", "network_args")
def lycoris_arguments(values: Values) -> Finding | None:
    """The arguments of LyCORIS can be read."""
    if values["network_module"] != LYCORIS:
        return None
    try:
        read_settings(_arguments(values))
    except UserError as problem:
        return error("network_args", problem.message, problem.hint)
    return None


@rule("network_module", "LoRA_type", "network_args")
def lycoris_refused(values: Values) -> Finding | None:
    """LyCORIS can train these settings, and the file does what was trained."""
    settings = _settings(values)
    if settings is None:
        return None
    rank = values["network_dim"]
    wrong = refusal(settings, rank)
    if wrong is not None:
        return error(_key(values, wrong[0]), wrong[1], wrong[2])
    sentence = butterfly_refusal(settings, rank)
    return error("network_dim", sentence, "Take ranks of 10 or more.") if sentence else None


@rule("network_module", "LoRA_type", "network_args", "scale_weight_norms")
def lycoris_norms(values: Values) -> Finding | None:
    """What is limited has a norm."""
    settings = _settings(values)
    if settings is None or not values["scale_weight_norms"] or settings.algo not in _WITHOUT_NORMS:
        return None
    return error(
        "scale_weight_norms",
        f"LyCORIS cannot limit the weight norms of {settings.algo}.",
        "Leave the limit empty, or choose another algorithm.",
    )


@rule("network_module", "LoRA_type", "network_args", "network_dropout")
def lycoris_ignored(values: Values) -> Finding | None:
    """Nothing is set that LyCORIS passes over without a word."""
    settings = _settings(values)
    found = [] if settings is None else remarks(settings, values["network_dropout"])
    if not found:
        return None
    # the first alone, so that it can be said in other languages
    return warning(_key(values, found[0][0]), found[0][1], " ".join(sentence for _, sentence in found[1:]))


RULES: tuple[Rule, ...] = (lycoris_arguments, lycoris_refused, lycoris_norms, lycoris_ignored)
