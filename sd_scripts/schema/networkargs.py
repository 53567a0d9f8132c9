"""Settings of the network that have a field of their own on the page and travel inside --network_args."""

from .loratypes import LORA_TYPES, Offers
from .lycoris import PRESETS
from .option import option, section

START_WEIGHTS = ("default", "pissa")


@section("LoRA", target="network_args")
class NetworkArgsOptions:
    """The kind of LoRA and its own settings."""

    LoRA_type: str = option(
        "Standard",
        "The kind of network. Standard is the usual LoRA and works everywhere; LoCon also trains convolutions; the "
        "LyCORIS ones need its package.",
        label="LoRA type",
        choices=tuple(LORA_TYPES),
        target="gui",
    )
    LyCORIS_preset: str = option(
        "full",
        "Which layers LyCORIS trains: all, only attention, and so on; or the path of a TOML file of your own.",
        label="LyCORIS preset",
        choices=PRESETS,
        custom=True,
        when=Offers("LyCORIS_preset"),
    )
    conv_dim: int | None = option(
        None,
        "Rank for the convolution layers; empty or 0 leaves 3x3 convolutions untrained (LyCORIS: takes the rank). 4 "
        "to 16 is usual for styles.",
        label="Convolution rank",
        minimum=0,
        maximum=100000,
        step=1,
        off=0,
        when=Offers("conv_dim"),
    )
    conv_alpha: float | None = option(
        None,
        "Alpha for the convolution layers, as for the others. If empty 1, or for LyCORIS the alpha of the others.",
        label="Convolution alpha",
        minimum=0,
        step=0.5,
        when=Offers("conv_alpha"),
    )
    rank_dropout: float | None = option(
        None,
        "Chance of each rank to be left out in a step, 0 to 1. About 0.1 to 0.3 against learning by heart.",
        label="Rank dropout",
        minimum=0,
        maximum=1,
        step=0.01,
        off=0,
        when=Offers("rank_dropout"),
    )
    module_dropout: float | None = option(
        None,
        "Chance of each whole module to be left out in a step, 0 to 1.",
        label="Module dropout",
        minimum=0,
        maximum=1,
        step=0.01,
        off=0,
        when=Offers("module_dropout"),
    )
    loraplus_lr_ratio: float | None = option(
        None,
        "LoRA+: the up matrices learn this many times faster than the down matrices. 16 is the authors' advice, 4 is "
        "careful.",
        label="LoRA+ ratio",
        minimum=0,
        off=0,
        when=Offers("loraplus_lr_ratio"),
    )
    loraplus_unet_lr_ratio: float | None = option(
        None,
        "The LoRA+ ratio of the U-Net, if it differs.",
        label="LoRA+ ratio of the U-Net",
        minimum=0,
        off=0,
        when=Offers("loraplus_unet_lr_ratio"),
    )
    loraplus_text_encoder_lr_ratio: float | None = option(
        None,
        "The LoRA+ ratio of the text encoder, if it differs.",
        label="LoRA+ ratio of the text encoder",
        minimum=0,
        off=0,
        when=Offers("loraplus_text_encoder_lr_ratio"),
    )
    down_lr_weight: str | None = option(
        None,
        "Learning-rate factors of the blocks on the way down (SD 12, SDXL 9), separated by commas, or a curve: cosine, "
        "sine, linear, reverse_linear, zeros (+0.25 lifts it).",
        label="Rates of the down blocks",
        when=Offers("down_lr_weight"),
    )
    mid_lr_weight: str | None = option(
        None,
        "Learning-rate factor of the middle block; for SDXL those of its 3 parts, separated by commas.",
        label="Rate of the middle block",
        when=Offers("mid_lr_weight"),
    )
    up_lr_weight: str | None = option(
        None,
        "Learning-rate factors of the blocks on the way up (SD 12, SDXL 9), as for the down blocks.",
        label="Rates of the up blocks",
        when=Offers("up_lr_weight"),
    )
    block_lr_zero_threshold: float | None = option(
        None,
        "Blocks with a factor up to this are not trained and not stored.",
        label="Factor that counts as zero",
        minimum=0,
        off=0,
        when=Offers("block_lr_zero_threshold"),
    )
    block_dims: str | None = option(
        None,
        "Ranks of the blocks (SD 25, SDXL 23), separated by commas. For people who know what each block does.",
        label="Ranks of the blocks",
        when=Offers("block_dims"),
    )
    block_alphas: str | None = option(
        None,
        "Alphas of the blocks (SD 25, SDXL 23), separated by commas.",
        label="Alphas of the blocks",
        when=Offers("block_alphas"),
    )
    conv_block_dims: str | None = option(
        None,
        "Convolution ranks of the blocks (SD 25, SDXL 23), separated by commas.",
        label="Convolution ranks of the blocks",
        when=Offers("conv_block_dims"),
    )
    conv_block_alphas: str | None = option(
        None,
        "Convolution alphas of the blocks (SD 25, SDXL 23), separated by commas.",
        label="Convolution alphas of the blocks",
        when=Offers("conv_block_alphas"),
    )
    unit: int | None = option(
        None,
        "DyLoRA: ranks that are trained together; the rank must be a multiple of it. If empty 1, or for LyCORIS 4.",
        label="DyLoRA block size",
        minimum=1,
        maximum=64,
        step=1,
        when=Offers("unit"),
    )
    factor: int = option(
        -1,
        "LoKr: into what size of pieces each matrix is split; -1 chooses the most even split, larger numbers make "
        "smaller files.",
        label="LoKr factor",
        minimum=-1,
        maximum=64,
        step=1,
        when=Offers("factor"),
    )
    decompose_both: bool = option(
        False,
        "LoKr: give the small matrix a low rank too.",
        label="Decompose both matrices",
        when=Offers("decompose_both"),
    )
    use_cp: bool = option(
        False,
        "Older name of the Tucker decomposition in LoKr.",
        label="CP decomposition",
        when=Offers("use_cp"),
    )
    use_tucker: bool = option(
        False,
        "Split 3x3 convolutions further (Tucker), for a smaller file.",
        label="Tucker decomposition",
        when=Offers("use_tucker"),
    )
    use_scalar: bool = option(
        False,
        "Train a strength for each module as well; it starts at zero instead of the up matrix.",
        label="Trained strength",
        when=Offers("use_scalar"),
    )
    rank_dropout_scale: bool = option(
        False,
        "Strengthen what remains when ranks are left out.",
        label="Balance rank dropout",
        when=Offers("rank_dropout_scale"),
    )
    bypass_mode: bool = option(
        False,
        "Add the network's output instead of its weights. Needed for base models in 8 bits, slower otherwise.",
        label="Bypass mode",
        when=Offers("bypass_mode"),
    )
    dora_wd: bool = option(
        False,
        "DoRA: train length and direction of the weights apart. Closer to full training, slower.",
        label="DoRA",
        when=Offers("dora_wd"),
    )
    rs_lora: bool = option(
        False,
        "rsLoRA: divide alpha by the root of the rank, so that large ranks learn as strongly as small ones. With "
        "rank 64 that is 8 times as strong: choose a smaller alpha or rate.",
        label="rsLoRA",
        when=Offers("rs_lora"),
    )
    init_lora_weights: str = option(
        "default",
        "What the network starts as: default changes nothing at first; pissa starts from the strongest parts of the "
        "base model's weights and learns faster, and the file has twice the rank.",
        label="Start of the weights",
        choices=START_WEIGHTS,
        when=Offers("init_lora_weights"),
    )
    enable_all_linear: bool = option(
        False,
        "OFT: turn every linear layer of the transformers, not only the attention.",
        label="All linear layers",
        when=Offers("enable_all_linear"),
    )
    enable_conv: bool = option(
        False,
        "OFT: turn the convolutions too.",
        label="Convolutions too",
        when=Offers("enable_conv"),
    )
    train_norm: bool = option(
        False,
        "Train the normalisation layers too.",
        label="Train normalisation layers",
        when=Offers("train_norm"),
    )
    constrain: float | None = option(
        None,
        "OFT: how far each block may turn; empty for no limit.",
        label="OFT limit",
        minimum=0,
        off=0,
        when=Offers("constrain"),
    )
    rescaled: bool = option(
        False,
        "OFT: train a scale for each output as well.",
        label="OFT with scale",
        when=Offers("rescaled"),
    )
    train_on_input: bool = option(
        True,
        "iA3: scale the inputs of layers instead of their outputs.",
        label="iA3 on inputs",
        when=Offers("train_on_input"),
    )
