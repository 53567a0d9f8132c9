"""The small network that is trained on top of the model: a LoRA or one of its relatives."""

from .loratypes import LYCORIS, OWN_NETWORKS, WITH_MAX_NORM, WITH_RANK, WITH_WEIGHTS, Offers
from .option import All, Given, Is, option, section


@section("Network")
class NetworkOptions:
    """The kind and size of the network, and where it starts from."""

    network_module: str | None = option(
        None,
        "Python module of the network: networks.lora for a LoRA, lycoris.kohya for LyCORIS. The page sets it from the "
        "LoRA type.",
        label="Network module",
        choices=(*OWN_NETWORKS, LYCORIS),
        custom=True,
        when=Is("LoRA_type", "Custom"),
    )
    network_dim: int | None = option(
        None,
        "Rank: the size of the network. 8 to 32 is usual; more can learn more detail, makes a larger file and learns "
        "the pictures by heart sooner. Kohya OFT: into how many blocks each layer is cut; more make a smaller file.",
        label="Rank",
        minimum=1,
        maximum=100000,
        step=1,
        when=WITH_RANK,
        basic=True,
    )
    network_alpha: float = option(
        1,
        "Strength of the network is alpha divided by rank. Half the rank or the rank itself is usual; changing it "
        "needs another learning rate. "
        "0 means the rank itself. Kohya OFT: how far the blocks may turn.",
        label="Alpha",
        minimum=0,
        step=0.5,
        when=WITH_RANK,
    )
    network_dropout: float | None = option(
        None,
        "Chance of each neuron to be left out in a step, 0 to 1. About 0.1 to 0.3 against learning by heart.",
        label="Dropout",
        minimum=0,
        maximum=1,
        step=0.01,
        off=0,
        when=Offers("network_dropout"),
    )
    network_args: list[str] | None = option(
        None,
        "Further settings of the network as name=value, for instance conv_dim=4. Added after those with a field of "
        "their own.",
        label="Network settings",
        kind="list",
    )
    network_weights: str | None = option(
        None,
        "A LoRA file to go on from, instead of starting with an empty network.",
        label="Go on from this LoRA",
        kind="file",
        aliases=("lora_network_weights",),
        when=WITH_WEIGHTS,
    )
    dim_from_weights: bool = option(
        False,
        "Take the rank from the file to go on from, so that both fit.",
        label="Rank from that file",
        when=All(WITH_WEIGHTS, Given("network_weights")),
    )
    scale_weight_norms: float | None = option(
        None,
        "Weights larger than this are shrunk after each step, so that the LoRA mixes well with others. 1 is a good "
        "start.",
        label="Largest weight norm",
        minimum=0,
        step=0.01,
        off=0,
        when=WITH_MAX_NORM,
    )
    base_weights: list[str] | None = option(
        None,
        "LoRA files that are merged into the base model before training starts. They don't become part of the result.",
        label="LoRAs merged first",
        kind="list",
    )
    base_weights_multiplier: list[float] | None = option(
        None,
        "How strongly each of the LoRAs merged first counts; 1 where missing.",
        label="Their strengths",
        kind="list",
        when=Given("base_weights"),
    )
    network_train_unet_only: bool = option(
        False,
        "Train only the part for pictures (U-Net). Saves memory and keeps the meaning of words; enough for most "
        "subjects.",
        label="Only the U-Net",
        when=Is("network_train_text_encoder_only", False),
    )
    network_train_text_encoder_only: bool = option(
        False,
        "Train only the part for words (text encoder).",
        label="Only the text encoder",
        when=Is("network_train_unet_only", False),
    )
