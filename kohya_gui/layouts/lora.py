"""The LoRA tab: which option stands where."""

from kohya_gui.layout import Group, Page
from kohya_gui.layouts import shared

_NETWORK = Group(
    "Network",
    (
        "network_alpha",
        "network_dropout",
        "rank_dropout",
        "module_dropout",
        "scale_weight_norms",
        "network_weights",
        "dim_from_weights",
        "network_module",
        "network_args",
        "unit",
        "init_lora_weights",
        "dora_wd",
        "rs_lora",
        "factor",
        "use_tucker",
        "decompose_both",
        "enable_all_linear",
        "enable_conv",
    ),
)

_LYCORIS = Group(
    "LyCORIS",
    (
        "LyCORIS_preset",
        "use_cp",
        "use_scalar",
        "rank_dropout_scale",
        "bypass_mode",
        "train_norm",
        "constrain",
        "rescaled",
        "train_on_input",
    ),
)

_PLUS = Group("LoRA+", ("loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio"))

_BLOCK_PAGES = (
    Page(
        "weights",
        "Weights",
        groups=(
            Group(
                "Weights", ("down_lr_weight", "mid_lr_weight", "up_lr_weight", "block_lr_zero_threshold"), plain=True
            ),
        ),
    ),
    Page("blocks", "Blocks", groups=(Group("Blocks", ("block_dims", "block_alphas"), plain=True),)),
    Page(
        "conv",
        "Conv",
        groups=(Group("Conv", ("conv_dim", "conv_alpha", "conv_block_dims", "conv_block_alphas"), plain=True),),
    ),
)

PAGES = (
    Page(
        "main",
        "Model and pictures",
        groups=(
            shared.start(after_name=("LoRA_type", "network_dim")),
            shared.CAPTIONS,
            shared.ABOUT_MODEL,
        ),
    ),
    shared.folders(),
    shared.PREPARATION,
    shared.parameters(
        (
            _NETWORK,
            _LYCORIS,
            _PLUS,
            shared.rates("unet_lr", "text_encoder_lr", "network_train_unet_only", "network_train_text_encoder_only"),
        ),
        advanced=(Group("Merged before training", ("base_weights", "base_weights_multiplier")),),
        pages=_BLOCK_PAGES,
    ),
    shared.SAMPLES,
    shared.ACCELERATE,
    Page("tools", "Tools", extra="tools"),
)

REST_PAGES = shared.REST_PAGES
