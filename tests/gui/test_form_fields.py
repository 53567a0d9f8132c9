"""The fields of kohya_ss's training tabs, of the last classic version and of the newest, against ours.

Each field has one here with its range, its value in a new form and the choices that show it; every difference is listed
with its reason, and a listed difference that is none any more fails too.
"""

import itertools
import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from kohya_gui import configs
from kohya_gui.layout import complete, placed_keys
from kohya_gui.layouts import LAYOUTS
from kohya_gui.old_keys import family_of
from sd_scripts.schema.loratypes import LORA_TYPES
from sd_scripts.schema.option import Condition, OptionField
from sd_scripts.schema.tabs import TABS, tab_aliases, tab_fields

DATA = json.loads((Path(__file__).parent / "data" / "form_fields.json").read_text(encoding="utf-8"))
CLASSIC, NEWEST = "v22.7", "v26"
BOTH = (CLASSIC, NEWEST)
OLD_TABS = tuple(DATA[CLASSIC])
EACH = [(version, tab) for version in BOTH for tab in OLD_TABS]

# their key -> our field, beyond the aliases that the fields have themselves
_MOVED = {
    "model_list": "model_family",
    "v2": "model_family",
    "v_parameterization": "model_family",
    "sdxl": "model_family",
    "sdxl_checkbox": "model_family",
    "use_wandb": "log_with",
    "sample_prompts": "sample_prompt_text",
}
_FROZEN_TEXT = "of the text encoder only the new word's vectors are trained"
_ALL_CAPTIONS = "a new word is learned from every caption"
_NO_INPAINTING = "inpainting models are not trained here"
_READ_WELL = "files are read in the way that suits the machine"
_ONE_WAY = "fused_backward_pass saves the same memory with every weight on its own"
_PADDING = "only DreamBooth training ever used it"
# (tab, key): why there is no such field
NOT_HERE = {
    ("lora", "stop_text_encoder_training"): "a network was never trained so, and the field said it had no effect",
    ("textual_inversion", "stop_text_encoder_training"): _FROZEN_TEXT,
    ("textual_inversion", "no_token_padding"): _PADDING,
    ("textual_inversion", "caption_dropout_rate"): _ALL_CAPTIONS,
    ("textual_inversion", "caption_dropout_every_n_epochs"): _ALL_CAPTIONS,
    ("textual_inversion", "disable_mmap_load_safetensors"): _READ_WELL,
    ("dreambooth", "disable_mmap_load_safetensors"): _READ_WELL,
    ("finetune", "disable_mmap_load_safetensors"): _READ_WELL,
    ("dreambooth", "fused_optimizer_groups"): _ONE_WAY,
    ("finetune", "fused_optimizer_groups"): _ONE_WAY,
    ("lora", "train_inpainting"): _NO_INPAINTING,
    ("dreambooth", "train_inpainting"): _NO_INPAINTING,
    ("finetune", "train_inpainting"): _NO_INPAINTING,
    ("lora", "lowvram"): "it never had an effect",
}
# label of a field that the classic version showed without keeping or sending it -> our field, or why there is none
UNKEPT = {
    "Cache text encoder outputs": "",  # captions change with the word that is learned
    "Debiased Estimation loss": "debiased_estimation_loss",
    "Enable buckets": "enable_bucket",
    "Full bf16 training (experimental)": "full_bf16",
    "Gradient accumulate steps": "gradient_accumulation_steps",
    "LR number of cycles": "lr_scheduler_num_cycles",
    "LR power": "lr_scheduler_power",
    "Learning rate TE": "",  # shown to nobody: a network and a new word have rates of their own
    "Learning rate TE1": "",
    "Learning rate TE2": "",
    "Max grad norm": "max_grad_norm",
    "Max resolution": "resolution",
    "Max train steps": "max_train_steps",
    "Maximum bucket resolution": "max_bucket_reso",
    "Minimum bucket resolution": "min_bucket_reso",
    "No token padding": "",  # only DreamBooth training ever used it
    "Prior loss weight": "",  # there are no regularisation pictures in fine-tuning
    "Stop text encoder training (% of total steps)": "",  # train_text_encoder says it
    "Training comment": "metadata_description",
    "VAE": "vae",
    "Weighted captions": "weighted_captions",
}
_OFF = "empty says off"
# (key) -> why our range leaves out a part of theirs
NARROWER = {
    "clip_skip": "0 and 1 mean the same",
    "huber_c": "0 would divide by zero",
    "learning_rate": "a rate below 0 learns away from the pictures",
    "learning_rate_te": "a rate below 0 learns away from the pictures",
    "learning_rate_te1": "a rate below 0 learns away from the pictures",
    "learning_rate_te2": "a rate below 0 learns away from the pictures",
    "main_process_port": _OFF,
    "max_timestep": "no steps at all cannot be trained",
    "max_train_epochs": _OFF,
    "min_timestep": "below 1000 there must be a step left",
    "stop_text_encoder_training": "-1 is the field for the number of steps, where it means not at all",
    "vae_batch_size": "0 and 1 mean the same",
}
# (key) -> our value in a new form, and why, where it is not theirs and no preset chose it
OWN_START: dict[str, str] = {
    "conv_alpha": "empty: the value the module itself takes",
    "conv_dim": "empty: the rank of the others, or none",
    "dynamo_backend": "counts only with compiling switched on",
    "init_word": "empty: near the mean of all words, as the star meant",
    "learning_rate": "the trainer's own, which the recipe uses",
    "learning_rate_te": "empty: the general rate",
    "learning_rate_te1": "empty: the general rate",
    "learning_rate_te2": "empty: the general rate",
    "lr_scheduler": "the trainer's own, which the recipe uses",
    "lr_scheduler_num_cycles": "1 is the trainer's own",
    "lr_scheduler_power": "1 is the trainer's own",
    "lr_warmup": "counts only with a schedule that warms up",
    "max_bucket_reso": "1024 is the trainer's own",
    "max_train_steps": "as long as the preset's recipe needs",
    "multires_noise_discount": "0.3 is the trainer's own; 0 counted as not given",
    "output_name": "empty: last",
    "pretrained_model_name_or_path": "empty: whoever trains chooses the model, whose old name is gone from the Hub",
    "resume_from_huggingface": "a switch here",
    "save_every_n_epochs": "the preset saves by steps",
    "sdxl_no_half_vae": "only for models that need it, SDXL's repaired VAE does not",
    "train_text_encoder": "the trainer's own: off",
    "unit": "empty: 1",
    "use_wandb": "no tracker, as theirs",
    "vae_batch_size": "1, as 0 meant",
    "dataset_repeats": "epochs say how often, 1 is the trainer's own",
    "use_latent_files": "a switch here",
    "optimizer": "empty: AdamW, which every machine has",
}
_IN_BLOCKS = "networks.dylora has no blocks and leaves nothing out"
# (key, LoRA type) where theirs shows a field and ours does not
LESS_SHOWN = {
    **{
        (key, "Kohya DyLoRA"): _IN_BLOCKS
        for key in (
            "block_alphas", "block_dims", "block_lr_zero_threshold", "conv_block_alphas", "conv_block_dims",
            "down_lr_weight", "mid_lr_weight", "up_lr_weight", "rank_dropout", "module_dropout",
        )
    },
}  # fmt: skip
_TAKES_IT = "the module takes it"
MORE_SHOWN = {
    ("conv_alpha", "LyCORIS/iA3"): _TAKES_IT,
    ("conv_dim", "LyCORIS/iA3"): _TAKES_IT,
    ("rank_dropout", "LyCORIS/LoKr"): _TAKES_IT,
    ("rank_dropout", "LyCORIS/Diag-OFT"): _TAKES_IT,
    ("rank_dropout", "LyCORIS/DyLoRA"): _TAKES_IT,
    ("module_dropout", "LyCORIS/LoKr"): _TAKES_IT,
    ("module_dropout", "LyCORIS/DyLoRA"): _TAKES_IT,
    ("use_tucker", "LyCORIS/LoKr"): "use_cp is its older name",
    ("scale_weight_norms", "LyCORIS/Diag-OFT"): _TAKES_IT,
    **{
        (key, f"LyCORIS/{name}"): "its files can be read here"
        for key in ("lora_network_weights", "dim_from_weights")
        for name in ("iA3", "Native Fine-Tuning")
    },
}


def our_key(tab: str, key: str) -> str:
    """The name of our field for theirs."""
    if (tab, key) == ("dreambooth", "stop_text_encoder_training"):
        return "stop_text_encoder_percent"
    return tab_aliases(tab).get(key, _MOVED.get(key, key))


def rows(version: str, tab: str) -> Iterator[tuple[str, OptionField, list[Any]]]:
    """Their key, our field and their facts, of every field that we have too."""
    for key, facts in DATA[version][tab].items():
        field = tab_fields(tab).get(our_key(tab, key))
        if field is not None and not (version == NEWEST and family_of(key)):
            yield key, field, facts


@cache
def start(tab: str) -> Mapping[str, Any]:
    """What the tab's form opens with, where that is not the default."""
    presets = {preset.name: preset.values for preset in configs.presets(tab)}
    return presets[LAYOUTS[tab].start_preset]


@pytest.mark.parametrize("tab", TABS)
def test_every_field_has_one_place_and_the_short_form_is_short(tab: str) -> None:
    layout = LAYOUTS[tab]
    placed = [
        key for key, _ in placed_keys(complete(layout.pages, tab_fields(tab), layout.rest_pages, layout.set_by_page))
    ]
    assert len(placed) == len(set(placed))
    assert set(placed) == set(tab_fields(tab)) - layout.set_by_page
    basic = {key for key in placed if tab_fields(tab)[key].basic}
    assert 10 <= len(basic) <= 14
    assert {"pretrained_model_name_or_path", "train_data_dir", "output_name", "output_dir", "resolution"} <= basic
    assert start(tab), "the form opens with a recipe"


@pytest.mark.parametrize(("version", "tab"), EACH)
def test_every_field_is_here(version: str, tab: str) -> None:
    keys = [key for key in DATA[version][tab] if not (version == NEWEST and family_of(key))]
    missing = {key for key in keys if our_key(tab, key) not in tab_fields(tab)}
    assert missing == {key for where, key in NOT_HERE if where == tab and key in DATA[version][tab]}


@pytest.mark.parametrize("tab", OLD_TABS)
def test_fields_of_other_families_are_not_shown(tab: str) -> None:
    others = {key for key in DATA[NEWEST][tab] if family_of(key)}
    assert not others & set(tab_fields(tab))
    assert len(others) > 10 or tab == "textual_inversion"


@pytest.mark.parametrize("tab", OLD_TABS)
def test_fields_that_were_shown_for_nothing_work_here(tab: str) -> None:
    assert set(itertools.chain(*DATA["unkept"].values())) == set(UNKEPT)
    wanted = {UNKEPT[label] for label in DATA["unkept"].get(tab, ())} - {""}
    # weights in captions are not read while a new word is learned
    assert wanted - set(tab_fields(tab)) == ({"weighted_captions"} if tab == "textual_inversion" else set())


def test_no_range_is_narrower_without_a_reason() -> None:
    found = set()
    for version, tab in EACH:
        for key, field, (_, least, most, _) in rows(version, tab):
            low = least is not None and field.minimum is not None and field.minimum > least
            high = most is not None and field.maximum is not None and field.maximum < most
            found |= {key} if low or high else set()
    assert found == set(NARROWER)


def as_typed(value: Any) -> Any:
    """A value without regard to how it is written: the empty text is nothing, "1" is 1."""
    if value in ("", None, []):
        return None
    try:
        return float(value) if not isinstance(value, bool) else value
    except (TypeError, ValueError):
        return [as_typed(item) for item in value] if isinstance(value, list) else value


def test_a_new_form_holds_their_values_or_those_of_a_chosen_recipe() -> None:
    # of their three ways of attention each is a switch of its own here; the kind of model is seen in the model itself
    found = set()
    for version, tab in EACH:
        for key, field, (default, *_) in rows(version, tab):
            if field.key in start(tab) or field.key in ("model_family", "xformers"):
                continue
            theirs = None if field.off is not None and as_typed(default) == field.off else as_typed(default)
            found |= {key} if theirs != as_typed(field.default) else set()
    assert found == set(OWN_START)


def shown(when: Condition | None, key: str, value: Any, tab: str) -> bool:
    """Whether a field can be seen with this value of one key, whatever the others hold."""
    if when is None:
        return True
    others = sorted(when.keys() - {key})
    fields = tab_fields(tab)
    values = [(*(fields[name].choices if name in fields else ()), True, False, "x", 1) for name in others]
    return any(when.holds({**dict(zip(others, mix, strict=True)), key: value}) for mix in itertools.product(*values))


def visibility(version: str) -> Iterator[tuple[str, str, Any, bool, bool]]:
    """Tab, their key, value of the deciding key, whether theirs is shown, whether ours is."""
    every = {"sdxl": (True, False), "noise_offset_type": ("Original", "Multires"), "LoRA_type": tuple(LORA_TYPES)}
    for tab in OLD_TABS:
        for key, field, (*_, condition) in rows(version, tab):
            if condition is not None:
                decider, values = condition
                for value in every[decider]:
                    yield tab, key, value, value in values, shown(field.when, decider, value, tab)


def test_fields_appear_with_the_same_choices() -> None:
    own_types = ("LyCORIS/BOFT", "Kohya LoHa", "Kohya LoKr", "Kohya OFT", "Custom")
    table = [row for row in visibility(CLASSIC) if row[2] not in own_types]
    less = {(key, value) for _, key, value, theirs, ours in table if theirs and not ours}
    more = {(key, value) for _, key, value, theirs, ours in table if ours and not theirs}
    assert less == set(LESS_SHOWN)
    assert more == set(MORE_SHOWN) | {("sdxl_no_half_vae", False)}, "the VAE of other models may need it too"
    assert len(table) > 300


def test_fields_of_the_newest_version_appear_where_they_have_an_effect() -> None:
    new = set(DATA[NEWEST]["lora"]) - set(DATA[CLASSIC]["lora"])
    table = [row for row in visibility(NEWEST) if row[1] in new]
    # shown for every kind of LyCORIS there, although only some take them
    less = {key for _, key, value, theirs, ours in table if theirs and not ours}
    assert less == {"bypass_mode", "dora_wd"}
    assert {key for _, key, _, theirs, ours in table if ours and not theirs} <= new
