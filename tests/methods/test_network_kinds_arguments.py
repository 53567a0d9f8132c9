"""LoRA-FA, DyLoRA, OFT, LoHa and LoKr: names, groups and rates, and sentences for what does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from kinds_kit import ARGUMENTS, KINDS, Bases, options
from network_kit import attached, method, model
from safetensors.torch import load_file, save_file

from sd_scripts.methods.network import NetworkMethod
from sd_scripts.networks.plugin import load_plugin
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.loratypes import OWN_ARGUMENTS, OWN_NETWORKS


@pytest.fixture(scope="module")
def bases() -> Bases:
    return Bases()


def test_names_of_modules(bases: Bases) -> None:
    wanted = {"oft": {"oft_unet"}, "loha": {"lora_te1", "lora_te2", "lora_unet"}}
    wanted |= dict.fromkeys(("lora_fa", "dylora", "lokr"), wanted["loha"])
    for kind in KINDS:
        network = load_plugin(f"networks.{kind}").create_network(1.0, 4, 1.0, None, *bases.views("sdxl"))
        found = {lora.lora_name for lora in network.loras}
        parts = {"_".join(name.split("_")[:2]) for name in found}
        assert parts == wanted[kind], kind
        encoders = [{name[9:] for name in found if name.startswith(f"lora_te{number}_")} for number in (1, 2)]
        assert kind == "oft" or encoders[0] & encoders[1], "both text encoders have a layer of the same name"


def test_layers_that_oft_takes_by_its_switches(bases: Bases) -> None:
    def count(**switches: str) -> int:
        encoder, unet = bases.views("sd1")
        return len(load_plugin("networks.oft").create_network(1.0, 4, 1.0, None, encoder, unet, **switches).loras)

    assert [count(enable_all_linear=word) for word in ("False", "True")] == [128, 192]
    assert count(enable_all_linear="true", enable_conv="1") == 278


@pytest.mark.parametrize("module", OWN_NETWORKS)
def test_the_rules_know_what_each_network_takes(module: str) -> None:
    every = {"algo"}.union(*OWN_ARGUMENTS.values())
    refused = set()
    for name in every:
        try:
            load_plugin(module).create_network(1.0, 4, 1.0, None, None, None, **{name: "1"})
        except UserError as problem:
            refused |= {name} if "does not know" in problem.message else set()
    assert refused == every - OWN_ARGUMENTS[module]


def group_names(made: NetworkMethod) -> list[tuple[str, float | None]]:
    return [(group.name, group.lr) for group in made.parameter_groups()]


@pytest.mark.parametrize("kind", KINDS)
def test_groups_and_their_rates(bases: Bases, kind: str) -> None:
    rates = {"unet_lr": 1e-3, "text_encoder_lr": [1e-4, 2e-4]}
    three = [("textencoder1", 1e-4), ("textencoder2", 2e-4), ("unet", 1e-3)]
    with bases.network("sdxl", rate=1e-3, rates=rates, **options(kind)) as made:
        assert group_names(made) == (three[2:] if kind == "oft" else three)
        assert made.may_leave_out == (kind == "dylora")
        assert made.trains_text_encoder == (kind != "oft")
    if kind == "oft":
        return
    faster = {"lora_fa": "lora_up", "dylora": "lora_up_ranks", "loha": "hada_w2_a", "lokr": "lokr_w1"}[kind]
    arguments = {"network_args": [*ARGUMENTS[kind], "loraplus_unet_lr_ratio=4"], "network_train_unet_only": True}
    with bases.network("sdxl", rate=1e-3, **options(kind, **arguments)) as made:
        groups = {group.name: group for group in made.parameter_groups()}
        wanted = {"unet plus": 4e-3} if kind == "lora_fa" else {"unet": 1e-3, "unet plus": 4e-3}
        assert {name: group.lr for name, group in groups.items()} == wanted
        chosen = {id(parameter) for parameter in groups["unet plus"].params}
        named = made.module.named_parameters()
        names = {name.partition(".")[2] for name, parameter in named if id(parameter) in chosen}
        assert names and all(name.startswith(faster) for name in names)


def test_layers_chosen_by_patterns_with_ranks_and_rates_of_their_own(bases: Bases) -> None:
    arguments = [
        r"include_patterns=[r'.*attn1\.to_[qk]']",
        "exclude_patterns=lora_unet_up_.*",
        r"network_reg_dims=.*to_q=2,.*to_k=3",
        r"network_reg_lrs=.*to_q=1e-5,.*mid.*to_k=0",
    ]
    with bases.network("sd1", rate=1e-3, **options("loha", network_args=arguments)) as made:
        dims = {lora.lora_name: lora.lora_dim for lora in made.module.loras}
        groups = {group.name: (group.lr, len(group.params)) for group in made.parameter_groups()}
        fixed = {name.partition(".")[0] for name, value in made.module.named_parameters() if not value.requires_grad}
    assert {name[-4:] for name in dims} == {"to_q", "to_k"} and len(dims) == 14
    assert all(dim == (2 if name.endswith("q") else 3) for name, dim in dims.items())
    assert groups == {"unet": (1e-3, 4 * 6), "unet 1e-05": (1e-5, 4 * 7)}
    assert fixed == {"lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_k"}


@pytest.mark.parametrize(
    ("kind", "arguments", "more", "words", "key"),
    [
        ("lora_fa", ["dora_wd=True"], {}, "networks.lora_fa does not know", "dora_wd"),
        ("dylora", ["unit=3"], {}, "network_dim 4 is no multiple of the DyLoRA unit 3", "unit"),
        ("dylora", ["unit=0"], {}, "at least 1, not 0", "unit"),
        ("dylora", ["conv_dim=8"], {}, "conv_dim equal to network_dim", "conv_dim"),
        ("oft", ["enable_conv=maybe"], {}, "must be True or False, not 'maybe'", "enable_conv"),
        ("oft", [], {"network_dim": 5}, "does not divide the 32 outputs", "network_dim"),
        ("oft", [], {"network_alpha": 0.0}, "must be above 0", "network_alpha"),
        ("oft", ["unit=2"], {}, "networks.oft does not know", "unit"),
        ("loha", ["use_tuker=True"], {}, "does not know", "use_tuker"),
        ("loha", ["include_patterns=["], {}, "must be a list", "include_patterns"),
        ("loha", ["exclude_patterns=("], {}, "no regular expression", "exclude_patterns"),
        ("loha", ["network_reg_dims=.*=x"], {}, "pattern=a rank", "network_reg_dims"),
        ("loha", ["rank_dropout=2"], {}, "below 1", "rank_dropout"),
        ("lokr", ["factor=0"], {}, "-1 .* or at least 1", "factor"),
        ("lokr", ["factor=two"], {}, "whole number", "factor"),
    ],
)
def test_bad_arguments_are_one_sentence(
    bases: Bases, kind: str, arguments: list[str], more: dict[str, Any], words: str, key: str
) -> None:
    with pytest.raises(UserError, match=words) as caught:
        attached(bases.get("sd1"), **options(kind, network_args=arguments, **more))
    assert caught.value.key == key


def test_what_oft_has_nothing_of(bases: Bases) -> None:
    with pytest.raises(UserError, match="cannot limit its norms"):
        attached(model(), **options("oft", scale_weight_norms=1.0))
    with pytest.raises(UserError, match="found no layer to train"):
        attached(bases.get("sd1"), **options("oft", network_train_text_encoder_only=True))


def test_files_that_do_not_fit_are_one_sentence(bases: Bases, tmp_path: Path) -> None:
    unet = bases.views("sd1")[1]
    few = {"include_patterns": ".*mid.*attn1.*"}

    def fresh(kind: str, rank: int = 4) -> Any:
        more = few if kind in ("loha", "lokr") else {}
        network = load_plugin(f"networks.{kind}").create_network(1.0, rank, 1.0, None, None, unet, **more)
        network.apply_to(None, unet)
        network.remove()
        return network

    paths = {kind: tmp_path / f"{kind}.safetensors" for kind in KINDS}
    networks = {kind: fresh(kind) for kind in KINDS}
    for kind, network in networks.items():
        network.save_weights(paths[kind], None, None)
    for kind, other, words in (
        ("loha", "lokr", "not made by networks.loha: it holds lokr_w1"),
        ("lokr", "dylora", "not made by networks.lokr: it holds lora_down.weight"),
        ("oft", "loha", "not made by networks.oft"),
        ("dylora", "loha", "no plain LoRA"),
        ("lora_fa", "oft", "no plain LoRA"),
    ):
        with pytest.raises(UserError, match=words):
            networks[kind].load_weights(paths[other])
        with pytest.raises(UserError, match=words):
            load_plugin(f"networks.{kind}").create_network_from_weights(1.0, paths[other], None, None, unet)
    for kind in ("loha", "lokr", "oft"):
        with pytest.raises(UserError, match="other ranks or another form at"):
            fresh(kind, rank=2).load_weights(paths[kind])
    with pytest.raises(UserError, match="no multiple of the DyLoRA unit 3"):
        load_plugin("networks.dylora").create_network_from_weights(1.0, paths["dylora"], None, None, unet, unit="3")
    torn = {key: value for key, value in load_file(paths["loha"]).items() if not key.endswith("hada_w2_b")}
    save_file(torn, paths["loha"])
    with pytest.raises(UserError, match="incomplete at lora_unet_mid"):
        load_plugin("networks.loha").create_network_from_weights(1.0, paths["loha"], None, None, unet)


def test_where_a_dropout_among_the_arguments_counts(bases: Bases, caplog: pytest.LogCaptureFixture) -> None:
    for kind, wanted in (("loha", 0.25), ("lokr", 0.25), ("lora_fa", None), ("dylora", None), ("oft", None)):
        caplog.clear()
        module = load_plugin(f"networks.{kind}")
        made = module.create_network(1.0, 4, 1.0, None, None, bases.views("sd1")[1], dropout="0.25")
        assert {lora.dropout for lora in made.loras} == {wanted}, kind
        assert ("leaves network_args dropout aside" in caplog.text) == (wanted is None)
    with pytest.raises(UserError, match="must be a number"):
        load_plugin("networks.loha").create_network(1.0, 4, 1.0, None, None, bases.views("sd1")[1], dropout="x")


def test_metadata_names_the_module() -> None:
    notes = method(**options("lokr")).metadata()
    assert notes["ss_network_module"] == "networks.lokr"
    assert json.loads(notes["ss_network_args"])["factor"] == "4"
