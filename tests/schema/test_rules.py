"""Every rule fires where it should and keeps quiet where the opposite holds."""

from typing import Any

import pytest
from network_rule_cases import CASES, GOOD, Values

from sd_scripts.schema.errors import UserError
from sd_scripts.schema.fields import complete, fields
from sd_scripts.schema.parse import parse
from sd_scripts.schema.rules import Finding, check, filled_in, implied


def rule_finding(rule: Any, values: Values) -> Finding | None:
    """What one rule says, with the module of the LoRA type as `check` fills it in."""
    before = check("train_network", {**GOOD, **values})
    said = rule(filled_in("train_network", {**GOOD, **values}))
    assert said is None or said in before, "check leaves a rule out"
    return said


def test_sensible_values_are_left_alone() -> None:
    assert check("train_network", GOOD) == []


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0].name}-{case[2]}")
def test_rule_fires_and_its_opposite_does_not(case: tuple[Any, str, str | None, Values, Values]) -> None:
    rule, severity, key, wrong, right = case
    said = rule_finding(rule, wrong)
    assert said is not None
    assert (said.severity, said.key) == (severity, key)
    assert rule_finding(rule, right) is None


def test_findings_are_sentences_about_known_options() -> None:
    known = fields("train_network")
    for rule, _, _, wrong, _ in CASES:
        said = rule(filled_in("train_network", {**GOOD, **wrong}))
        assert said.key in known
        assert said.message[0].isupper() or said.message.startswith((*known, "networks.")), said.message
        assert said.message.endswith(".") and said.hint[-1:] in ("", ".")


def test_errors_come_first_and_ranges_are_checked_too() -> None:
    found = check("train_network", {**GOOD, "xformers": True, "sdpa": True, "train_batch_size": 0, "seed": -1})
    assert [finding.severity for finding in found] == ["error", "error", "warning"]
    assert {finding.key for finding in found} == {"train_batch_size", "seed", "sdpa"}


def test_a_number_that_stands_for_off_is_no_error() -> None:
    assert (
        check("train_network", {**GOOD, "save_every_n_epochs": 0, "max_timestep": 1000, "max_token_length": 75}) == []
    )


def test_a_value_of_the_wrong_choice_does_not_reach_the_rules() -> None:
    found = check("train_network", {**GOOD, "LoRA_type": "Flux1", "lr_scheduler": "cosine"})
    assert [finding.key for finding in found if finding.severity == "error"] == ["LoRA_type", "network_module"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"cache_latents_to_disk": True}, {"cache_latents": True}),
        ({"cpu_offload_checkpointing": True}, {"gradient_checkpointing": True}),
        ({"caption_extention": ".txt"}, {"caption_extension": ".txt"}),
        ({"deepspeed": True}, {"max_data_loader_n_workers": 1}),
        ({"sample_every_n_steps": -5}, {"sample_every_n_steps": None}),
        ({}, {}),
    ],
)
def test_implied(given: Values, expected: Values) -> None:
    assert implied("train_network", complete("train_network", given)) == expected


def test_the_config_holds_what_is_implied() -> None:
    argv = ["--pretrained_model_name_or_path", "m", "--train_data_dir", "p", "--resolution", "512", "--output_dir", "o",
            "--network_module", "networks.lora", "--cache_latents_to_disk", "--caption_extention", ".txt"]  # fmt: skip
    config = parse("train_network", argv)
    assert config.dataset.cache_latents is True
    assert config.captions.caption_extension == ".txt"
    assert "cache_latents" not in config.given
    with pytest.raises(UserError) as caught:
        parse("train_network", [*argv, "--color_aug"])
    assert caught.value.key == "color_aug"
    warned = parse("train_network", [*argv, "--lowram", "--highvram"]).warnings
    assert [str(finding) for finding in warned] == ["lowram and highvram are both set. Leave one of both off."]
    assert warned[0].key == "highvram"
