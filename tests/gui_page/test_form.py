"""The form: every option once, values there and back, what is hidden and why."""

import json
from pathlib import Path

import gradio as gr
import pytest

from kohya_gui import widgets
from kohya_gui.form import PATCH, Form
from kohya_gui.layout import Group, Page, complete, placed_keys
from kohya_gui.layouts import LAYOUTS
from kohya_gui.localization import Words
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.tabs import tab_aliases, tab_fields

TAB = "lora"
LAYOUT = LAYOUTS[TAB]
DATA = Path(__file__).with_name("data")


@pytest.fixture(scope="module")
def form() -> Form:
    known = tab_fields(TAB)
    pages = complete(LAYOUT.pages, known, LAYOUT.rest_pages, LAYOUT.set_by_page)
    made = Form(TAB, known, pages, Words({}))
    with gr.Blocks():
        made.build({"dataset": lambda: None})
    return made


def contents(form: Form, values: dict[str, object], **typed: object) -> list[object]:
    """What the form's component holds after `fill`, and after something was typed."""
    (shown,) = form.fill(values)
    return [{**shown, **typed}]


def test_every_option_of_the_command_has_exactly_one_place(form: Form) -> None:
    assert sorted(form.keys) == sorted(set(tab_fields(TAB)) - LAYOUT.set_by_page)


def test_every_field_of_the_older_lora_tab_is_there(form: Form) -> None:
    older = json.loads((DATA / "lora_keys_v22_7.json").read_text(encoding="utf-8"))["keys"]
    assert len(older) == 124
    known = tab_aliases(TAB)
    # use_wandb became a choice of log_with; the alias table knows it
    missing = {key for key in older if known.get(key, key) not in form.keys}
    # one control stands for the first four; a network was never trained so as the last one says
    assert missing == {"model_list", "v2", "v_parameterization", "sdxl", "stop_text_encoder_training"}


def test_basic_shows_no_more_than_a_newcomer_can_take_in(form: Form) -> None:
    assert 10 <= len(form.basic) <= 14
    assert {"pretrained_model_name_or_path", "train_data_dir", "output_dir", "learning_rate"} <= form.basic


def test_each_field_has_label_help_and_flag_in_its_tooltip(form: Form) -> None:
    facts = form.facts()
    for key, option in form.fields.items():
        assert facts[key]["label"] and option.help in facts[key]["tip"]
        tip = facts[key]["tip"]
        flag = f"--{key}" if option.flag else "--network_args" if option.target == "network_args" else key
        assert flag in tip and "default" in tip and option.unit in tip
    assert "--network_args preset=…" in facts["LyCORIS_preset"]["tip"]
    assert "accelerate launch --gpu_ids" in facts["gpu_ids"]["tip"]


def test_choices_are_said_in_words(form: Form) -> None:
    fact = form.facts()["model_family"]
    assert fact["called"]["sd2-v"] == "Stable Diffusion 2.x with velocity prediction"
    assert list(fact["called"]) == fact["list"] and "default auto (seen in the model)" in fact["tip"]
    back = form.changed({"model_family": "sd2"}, {"model_family": "sdxl"})["model_family"]
    assert back == "back to Stable Diffusion XL"


def test_defaults_come_back_as_defaults(form: Form) -> None:
    found = form.collect(contents(form, {}))
    assert found.mistakes == []
    assert form.changed(found.values) == {}


VALUES = {
    "pretrained_model_name_or_path": "C:\\models\\my model.safetensors",
    "learning_rate": 1e-4,
    "text_encoder_lr": [5e-5, 1e-5],
    "optimizer_type": "Prodigy",
    "optimizer_args": ["weight_decay=0.01", "betas=.9,.999", "note=a b"],
    "max_train_epochs": 10,
    "seed": 4294967295,
    "enable_bucket": True,
    "max_token_length": 225,
    "lr_warmup_steps": 0.1,
    "caption_prefix": "a photo of ünï, ",
    "resolution": "512,768",
    "sample_prompt_text": "first --n bad\nsecond",
    "LoRA_type": "LyCORIS/LoKr",
}


def test_values_survive_the_way_through_the_components(form: Form) -> None:
    found = form.collect(contents(form, VALUES))
    assert found.mistakes == []
    expected = VALUES | {"caption_prefix": "a photo of ünï,"}
    for key, value in expected.items():
        assert found.values[key] == value, key
    assert set(form.changed(found.values)) == set(VALUES)


def test_a_value_outside_the_choices_is_kept_and_shown(form: Form) -> None:
    assert form.fill({"lr_scheduler": "my.own.Scheduler"}) == [{"lr_scheduler": "my.own.Scheduler"}]


def test_patch_leaves_the_other_fields_alone(form: Form) -> None:
    (update,) = form.patch({"seed": 7, "unknown": 1})
    assert update[PATCH] == {"seed": "7"}
    assert form.patch({}) == [gr.skip()]


@pytest.mark.parametrize("sent", [{}, {"seed": ["7"], "enable_bucket": "yes", "unknown": 1}, None, "text", [1]])
def test_what_no_browser_of_ours_sends_counts_as_untouched(form: Form, sent: object) -> None:
    assert form.collect([sent]).values == form.collect([{}]).values


def test_text_that_is_no_number_is_a_mistake_with_its_key(form: Form) -> None:
    found = form.collect(contents(form, {}, learning_rate="fast", seed="1.5"))
    assert sorted(mistake.key or "" for mistake in found.mistakes) == ["learning_rate", "seed"]
    assert "learning_rate" not in found.values


def test_fields_that_do_not_apply_are_hidden_with_the_reason_and_not_sent(form: Form) -> None:
    standard = {"LoRA_type": "Standard", "factor": 4}
    assert "LoKr" in form.hidden(standard)["factor"]
    assert "factor" not in form.applicable(standard)
    assert form.applicable({"LoRA_type": "LyCORIS/LoKr", "factor": 4})["factor"] == 4


def test_conditions_in_words(form: Form) -> None:
    hidden = form.hidden({"noise_offset_type": "Multires", "deepspeed": False})
    assert hidden["noise_offset"] == "Applies with Kind of noise offset Original."
    assert hidden["zero_stage"] == "Applies with Use DeepSpeed on."
    # of several conditions only those that do not hold
    assert form.hidden({"LoRA_type": "Standard"})["dim_from_weights"] == "Applies when Go on from this LoRA is set."


def test_fields_of_one_kind_of_model_say_which(form: Form) -> None:
    old, new = form.hidden({"model_family": "sd1"}), form.hidden({"model_family": "sdxl"})
    assert old["cache_text_encoder_outputs"] == "Applies for models of Stable Diffusion XL."
    assert new["weighted_captions"] == "Applies for models other than SDXL."
    assert "weighted_captions" not in old and "cache_text_encoder_outputs" not in new
    assert old["scale_v_pred_loss_like_noise_pred"] == "Applies for models that predict velocity."
    assert form.hidden({"model_family": "sd2-v"})["v_pred_like_loss"] == "Applies for models that predict noise."


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (1e-4, "1e-4"),
        (5e-5, "5e-5"),
        (2.5e-6, "2.5e-6"),
        (0.05, "0.05"),
        (1.0, "1"),
        (512, "512"),
        (0.0, "0"),
        (1234567, "1234567"),
    ],
)
def test_numbers_are_written_as_people_write_them(number: float, text: str) -> None:
    assert widgets.number_text(number) == text
    assert float(text) == number


def test_reading_refuses_what_is_out_of_range() -> None:
    option = tab_fields(TAB)["caption_dropout_rate"]
    assert widgets.read(option, "0.5") == 0.5
    assert widgets.read(option, "") is None
    with pytest.raises(UserError) as caught:
        widgets.read(option, "1.5")
    assert caught.value.key == "caption_dropout_rate"


def test_a_key_in_two_places_is_refused() -> None:
    twice = (Page("a", "A", (Group("g", ("seed",)), Group("h", ("seed",)))),)
    with pytest.raises(ValueError, match="seed"):
        complete(twice, tab_fields(TAB), {"": "a"})


def test_options_no_page_names_follow_by_section() -> None:
    pages = complete((Page("a", "A", (Group("g", ("seed",), plain=True),)),), tab_fields(TAB), {"": "a"}, frozenset())
    placed = dict(placed_keys(pages))
    assert placed["seed"].accordion == "" and placed["learning_rate"].accordion != ""
    assert set(placed) == set(tab_fields(TAB))
