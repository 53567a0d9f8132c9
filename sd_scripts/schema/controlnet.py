"""Control networks: a second picture says where things are."""

from .option import option, section


@section("ControlNet")
class ControlNetOptions:
    """Where the control network starts from."""

    controlnet_model_name_or_path: str | None = option(
        None,
        "A ControlNet to go on from: a file, a diffusers folder or a Hub name. Empty starts from a copy of the base "
        "model's first half, as is usual.",
        label="Go on from this ControlNet",
        kind="model",
    )


@section("ControlNet-LLLite")
class LLLiteOptions:
    """Size of the small control network; its rank is the network's."""

    cond_emb_dim: int | None = option(
        None,
        "Size of what is kept of the control picture at each place; 32 if empty. More follows the picture more closely "
        "and makes a larger file.",
        label="Size of the control signal",
        minimum=1,
        step=1,
    )
