"""Every field that kohya_ss has for its LoRA and model tools is on the page and reaches the script as it should."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from weights_kit import lora, model

from kohya_gui import command, job_plan, machine, model_kind, tools, tools_lora, tools_models
from kohya_gui.job_queue import NONE, gpu_set
from kohya_gui.paths import Roots
from sd_scripts.schema.errors import UserError
from sd_scripts.tools.common import job_dir_of, parse_section

KOHYA: dict[str, Any] = json.loads(
    (Path(__file__).parent / "data" / "kohya_lora_tools.json").read_text(encoding="utf-8")
)
NEW = {tool.name: tool for tool in (*tools_lora.TOOLS, *tools_models.TOOLS)}
# first values that are others on purpose
OTHERWISE = {
    # what the script has no word for
    ("resize_lora", "dynamic_method"): "sv_fro",
    ("resize_lora", "dynamic_param"): 0.9,
    # one choice, with what the files say as its first value, stands for two boxes that had to agree with the files
    **{(name, "model_family"): "auto" for name in ("merge_lora", "extract_lora", "extract_lycoris_locon",
                                                   "merge_lycoris")},
    # had to be chosen; what most programs read is the first choice now
    ("convert_model", "target_model_type"): "safetensors",
}  # fmt: skip
# wider on purpose: a strength below 0 takes something out, one above 1 is stronger than trained
WIDER = {"ratio_a", "ratio_b", "ratio_c", "ratio_d", "weight"}
# said otherwise, or more of them
CHOICES = {("lcm_convert", "model_type"), ("resize_lora", "dynamic_method"), ("convert_model", "source_model_type")}
# shown for other kinds of models too (the kind is seen in the files), or under another condition
SEEN = {"sdxl": {"sdxl": True}, 'mode == "fixed"': {"mode": "fixed"}, 'mode == "threshold"': {"mode": "threshold"},
        'mode == "ratio"': {"mode": "ratio"}, 'mode == "quantile"': {"mode": "quantile"}}  # fmt: skip


def options(name: str, values: Mapping[str, Any]) -> Any:
    """The options that the script reads from the command line made of a form."""
    tool = NEW[name]
    argv = tools.build(tool.command, values, job_dir=Path("job")).argv
    assert argv[1].endswith(".py") and os.path.isfile(argv[1])
    folder, rest = job_dir_of(argv[2:])
    assert folder == Path("job")
    return parse_section(tool.section, rest, name)


@pytest.mark.parametrize("name", sorted(set(KOHYA) & set(NEW)))
def test_every_field_is_there_and_found_by_its_name(name: str) -> None:
    tool = NEW[name]
    fields, start = tools.tool_fields(tool), tools.start_values(tool)
    assert tool.title.lower() == KOHYA[name]["title"].lower()
    for known in KOHYA[name]["fields"]:
        key = known["ours"]
        if not key:  # the output of the script, which is shown as a table
            assert tool.reports
            continue
        assert key in fields, known
        names = [fields[key].label, key, *tool.labels.get(key, ())]
        assert any(known["label"].lower() in text.lower() for text in names), (known["label"], names)
        default = "cpu" if known["default"] == "cuda" and not machine.has_gpu() else known["default"]
        wanted = OTHERWISE.get((name, key), default)
        assert (start[key] if start[key] is not None else "") == (wanted if wanted is not None else ""), key
        if key not in WIDER:
            for side, mine in (("min", fields[key].minimum), ("max", fields[key].maximum)):
                assert known.get(side) in (None, mine), (key, side, mine)
        elif "min" in known:
            assert fields[key].minimum <= known["min"] and fields[key].maximum >= known["max"]  # type: ignore[operator]
        if "choices" in known and (name, key) not in CHOICES:
            assert set(known["choices"]) == set(fields[key].choices), key
        if "visible_when" in known:
            condition, good = fields[key].when, SEEN[known["visible_when"]]
            assert condition is not None and condition.holds(good)
            assert not condition.holds(dict.fromkeys(good, "another"))


@pytest.mark.parametrize("name", sorted(NEW))
def test_every_record_is_complete(name: str) -> None:
    tool = NEW[name]
    fields = tools.tool_fields(tool)
    assert tool.folder in fields and set(tool.start) <= set(fields)
    assert set(tool.endings) | set(tool.models) | set(tool.seen) | set(tool.wide) | set(tool.labels) <= set(fields)
    assert all(field.label and len(field.help) > 10 for field in fields.values())
    assert (command.PROJECT / tool.script).is_file()
    on_shelves = [each for shelf in tools.SHELVES for each in shelf.tools]
    assert on_shelves.count(name) == 1
    assert all(fields[key].kind in tools.PATHS for key in (*tool.endings, *tool.seen))


def test_networks_and_strengths_of_all_slots_become_lists() -> None:
    values = {
        "lora_a_model": "/a",
        "ratio_a": 0.5,
        "lora_c_model": "/c",
        "ratio_c": -0.25,
        "ratio_d": 1,
        "save_to": "/o",
    }
    found = options("merge_lora", values)
    assert (found.models, found.ratios) == (["/a", "/c"], [0.5, -0.25])
    assert (found.save_to, found.sd_model, found.v2, found.overwrite) == ("/o.safetensors", None, False, False)
    with pytest.raises(UserError, match="No file"):
        options("merge_lora", {"save_to": "/o"})


def test_all_other_options_of_merging() -> None:
    values = {"sd_model": "/m", "lora_a_model": "/a", "ratio_a": 1, "save_to": "/o.ckpt", "precision": "bf16"}
    values |= {"save_precision": "float", "concat": True, "shuffle": True, "no_metadata": True, "overwrite": True}
    found = options("merge_lora", {**values, "model_family": "sd2", "legacy": True})
    assert (found.sd_model, found.v2, found.save_to, found.precision) == ("/m", True, "/o.ckpt", "bf16")
    assert found.save_precision == "float"
    assert found.concat and found.shuffle and found.no_metadata and found.overwrite and found.legacy


def test_the_script_follows_the_kind_of_model(tmp_path: Path) -> None:
    def script(**values: Any) -> str:
        values = {"ratio_a": 1.0, "save_to": "/o", **values}
        return Path(tools.build("tool:merge_lora", values).argv[1]).stem

    one, xl = str(lora(tmp_path / "one.safetensors")), str(lora(tmp_path / "xl.safetensors", "sdxl"))
    assert script(lora_a_model=one) == "merge_lora" and script(lora_a_model=xl) == "sdxl_merge_lora"
    assert script(lora_a_model="/there/is/none.ckpt", model_family="sdxl") == "sdxl_merge_lora"
    base = str(model(tmp_path / "base.safetensors", "sdxl"))
    assert script(lora_a_model="/unknown.pt", sd_model=base) == "sdxl_merge_lora"


def test_shares_of_the_slots_that_are_filled_are_one_together() -> None:
    values = {"lora_a_model": "/a", "ratio_a": 0.25, "lora_b_model": "/b", "ratio_b": 0.75, "save_to": "/o"}
    found = options("svd_merge_lora", {**values, "new_rank": 8, "new_conv_rank": 4, "device": "cpu", "exact": True})
    assert (found.models, found.ratios) == (["/a", "/b"], [0.25, 0.75])
    assert (found.new_rank, found.new_conv_rank, found.device, found.exact) == (8, 4, "cpu", True)
    # the empty slots' first values of 0.25 do not count
    assert options("svd_merge_lora", {**values, "ratio_b": 0.25}).ratios == [0.5, 0.5]
    with pytest.raises(UserError, match="0"):
        options("svd_merge_lora", {**values, "ratio_a": 0, "ratio_b": 0})


def test_extraction_of_a_lora() -> None:
    values = {"model_tuned": "/t", "model_org": "/o", "save_to": "/l", **tools.tool_fields(NEW["extract_lora"])}
    values = {"model_tuned": "/t", "model_org": "/o", "save_to": "/l", "dim": 64, "conv_dim": 0, "device": "cpu"}
    found = options("extract_lora", {**values, "clamp_quantile": 1.0, "min_diff": 0.02, "load_precision": "bf16"})
    assert (found.model_tuned, found.model_org, found.save_to) == ("/t", "/o", "/l.safetensors")
    assert (found.dim, found.conv_dim, found.clamp_quantile, found.min_diff) == (64, None, 1.0, 0.02)
    assert (found.load_precision, found.sdxl, found.v2) == ("bf16", False, False)
    both = {"model_family": "sdxl", "load_tuned_model_to": "cuda:0", "load_original_model_to": "cuda", "conv_dim": 8}
    found = options("extract_lora", {**values, **both})
    assert (found.sdxl, found.load_tuned_model_to, found.load_original_model_to, found.conv_dim) == (
        True, "cuda:0", "cuda", 8,
    )  # fmt: skip


@pytest.mark.parametrize("mode", ["threshold", "ratio", "quantile"])
def test_extraction_of_a_lycoris_file_gets_the_numbers_of_its_mode_alone(mode: str) -> None:
    values = {"db_model": "/t", "base_model": "/b", "output_name": "/l", "mode": mode}
    rest = {key: value for key, value in tools.start_values(NEW["extract_lycoris_locon"]).items() if value is not None}
    found = options("extract_lycoris_locon", {**rest, **values, f"linear_{mode}": 0.3, f"conv_{mode}": 0.4})
    assert (found.base_model, found.db_model, found.output_name) == ("/b", "/t", "/l.safetensors")
    assert (getattr(found, f"linear_{mode}"), getattr(found, f"conv_{mode}")) == (0.3, 0.4)
    others = {"threshold", "ratio", "quantile"} - {mode}
    assert all(getattr(found, f"linear_{other}") in (0.0, 1.0) for other in others) and found.safetensors


def test_the_other_tools_of_networks() -> None:
    found = options("merge_lycoris", {"base_model": "/b", "lycoris_model": "/l", "output_name": "/o", "weight": 0.5,
                                      "dtype": "bfloat16", "device": "cpu", "model_family": "sdxl"})  # fmt: skip
    assert (found.base_model, found.lycoris_model, found.output_name) == ("/b", "/l", "/o.safetensors")
    assert (found.weight, found.dtype, found.is_sdxl, found.is_v2) == (0.5, "bfloat16", True, False)
    found = options("extract_dylora", {"model": "/d", "save_to": "/o.pt", "unit": 4})
    assert (found.model, found.save_to, found.unit) == ("/d", "/o.pt", 4)
    found = options("resize_lora", {"model": "/l", "save_to": "/o", "new_rank": 8, "dynamic_method": "sv_ratio",
                                    "dynamic_param": 20, "verbose": True, "save_precision": "bf16"})  # fmt: skip
    assert (found.model, found.save_to, found.new_rank, found.verbose) == ("/l", "/o.safetensors", 8, True)
    assert (found.dynamic_method, found.dynamic_param, found.save_precision) == ("sv_ratio", 20.0, "bf16")
    found = options("verify_lora", {"file": "/l", "show_all_keys": True})
    assert (found.file, found.show_all_keys, found.json) == ("/l", True, str(Path("job/lora.json")))
    found = options("convert_lora", {"model": "/l", "save_to": "/o", "to": "peft", "family": "sdxl"})
    assert (found.model, found.save_to, found.to, found.family) == ("/l", "/o.safetensors", "peft", "sdxl")
    found = options(
        "interrogate_lora",
        {"sd_model": "/m", "model": "/l", "batch_size": 4, "model_family": "sd2", "words": ["cat", "dog"]},
    )
    assert (found.sd_model, found.model, found.batch_size, found.v2) == ("/m", "/l", 4, True)
    assert found.words == ["cat", "dog"]


@pytest.mark.parametrize(
    ("kind", "ending", "flag"),
    [("safetensors", ".safetensors", False), ("ckpt", ".ckpt", False), ("diffuser", "", False),
     ("diffuser_safetensors", "", True)],
)  # fmt: skip
def test_conversion_of_models(kind: str, ending: str, flag: bool) -> None:
    values = {"model_to_load": "/m", "target_model_folder_input": "/out", "target_model_name_input": "new"}
    found = options("convert_model", {**values, "target_model_type": kind})
    assert (found.model_to_load, found.model_to_save) == ("/m", f"/out/new{ending}")
    assert (found.use_safetensors, found.v1, found.v2, found.reference_model) == (flag, False, False, None)
    typed = {"source_model_type": "stabilityai/stable-diffusion-2-1", "target_save_precision_type": "fp16"}
    found = options("convert_model", {**values, **typed, "target_model_type": kind, "unet_use_linear_projection": True})
    assert found.v2 and found.save_precision_as == "fp16" and found.unet_use_linear_projection
    assert found.reference_model == (None if ending else "stabilityai/stable-diffusion-2-1")


@pytest.mark.parametrize("name", ["", "..", "../up", "a/b", "a\\b", ".hidden", "C:x", "a\0b"])
def test_a_model_gets_a_plain_name(name: str) -> None:
    values = {"model_to_load": "/m", "target_model_folder_input": "/out", "target_model_name_input": name}
    with pytest.raises(UserError):
        tools.build("tool:convert_model", values)


def test_models_are_mixed_by_their_shares() -> None:
    values = {"model_a": "/a", "ratio_a": 0.7, "model_b": "/b", "ratio_b": 0.3, "output": "/o", "unet_only": True}
    found = options("merge_models", {**values, "saving_precision": "fp16"})
    assert (found.models, found.ratios, found.output) == (["/a", "/b"], [0.7, 0.3], "/o.safetensors")
    assert found.unet_only and found.saving_precision == "fp16"


@pytest.mark.parametrize(
    ("kind", "sdxl", "ssd"), [("SD15", False, False), ("SDXL", True, False), ("SSD-1B", False, True)]
)
def test_conversion_to_lcm_and_pruning(kind: str, sdxl: bool, ssd: bool) -> None:
    found = options("lcm_convert", {"model": "/m", "name": "/fast", "lora_scale": 0.8, "model_type": kind})
    assert (found.model, found.name, found.lora_scale) == ("/m", "/fast.safetensors", 0.8)
    assert (found.sdxl, found.ssd_1b, found.lcm_lora) == (sdxl, ssd, None)
    found = options("prune_model", {"model_prune": "/m", "prune_output": "/p", "half": True})
    assert (found.model_prune, found.prune_output, found.half) == ("/m", "/p.safetensors", True)


def test_notes_are_set_and_taken_out() -> None:
    values = {
        "model": "/m",
        "title": "A cat",
        "tags": "cat, photo",
        "more": "my.note=--x=1\n\nother=b",
        "without": "a, b",
    }
    found = options("edit_metadata", values)
    assert found.set == ["modelspec.title=A cat", "modelspec.tags=cat, photo", "my.note=--x=1", "other=b"]
    assert found.remove == ["a", "b"] and found.overwrite and found.save_to is None
    found = options("edit_metadata", {"model": "/m", "title": "A", "save_to": "/new"})
    assert (found.save_to, found.overwrite) == ("/new.safetensors", False)
    for wrong in (
        {"more": "no sign"},
        {"more": "=x"},
        {"more": "--flag=x"},
        {"title": "A", "without": "modelspec.title"},
    ):
        with pytest.raises(UserError):
            tools.build("tool:edit_metadata", {"model": "/m", **wrong})


@pytest.mark.parametrize("name", sorted(NEW))
def test_every_path_is_confined_and_no_text_becomes_a_flag(name: str, tmp_path: Path) -> None:
    tool = NEW[name]
    fields = tools.tool_fields(tool)
    inside = {key: f"in/sub/{key}" for key, option in fields.items() if option.kind in tools.PATHS}
    roots = Roots([tmp_path / "open"])
    made = tools.resolved(tool, inside, roots)
    assert all(str(made[key]).startswith(str(tmp_path / "open")) for key in inside)
    for key in inside:
        for path in ("../out", "/etc/passwd", "in/../../out", "//host/x", "a\0b", "https://x.y/z", ".hidden/x"):
            with pytest.raises(UserError) as refused:
                tools.resolved(tool, {**inside, key: path}, roots)
            assert refused.value.key == key
    plain = {key: f"/{key}" for key in inside} | {"target_model_name_input": "name"}
    for key, option in fields.items():
        if option.type != "str" or (option.choices and not option.custom) or key == "target_model_name_input":
            continue
        for text in ("$(touch x)", "--job_dir=/x", "a; b", "-c", "x\n--overwrite"):
            argv = _argv(tool, {**plain, key: text})
            flags = [word for word in argv if word.startswith("-")]
            before = [word for word in _argv(tool, plain) if word.startswith("-")]
            new = {word.partition("=")[0].partition("\n")[0] for word in flags} - {
                word.partition("=")[0] for word in before
            }
            assert new <= {f"--{each}" for each in (*fields, "models", "set", "remove", "overwrite")}, (key, text, new)
            assert "--overwrite" not in new or key in ("title", "more", "without", *fields)


def _argv(tool: tools.Tool, values: Mapping[str, Any]) -> list[str]:
    try:
        argv = tools.build(tool.command, values).argv[4:]
    except UserError:
        return []
    return argv[: argv.index("--")] if "--" in argv else argv


def test_a_written_file_has_an_ending_of_weights(tmp_path: Path) -> None:
    for tool in NEW.values():
        for key, endings in tool.endings.items():
            for text in ("x.sh", "x.py", ".bashrc", "x", "x.SAFETENSORS"):
                assert tools.with_ending(tool, key, text, {}).lower().endswith(endings)
    merge, folder = NEW["merge_lora"], tmp_path / "diffusers"
    folder.mkdir()
    assert tools.with_ending(merge, "save_to", "new", {"sd_model": str(folder)}) == "new"


def test_a_folder_is_no_name_for_a_file(tmp_path: Path) -> None:
    source = tmp_path / "cat.safetensors"
    lora(source, "sd1")
    for text in (str(tmp_path), f"{tmp_path}/new/"):
        with pytest.raises(UserError, match="is a folder") as refused:
            tools.resolved(tools.TOOLS["resize_lora"], {"model": str(source), "save_to": text}, Roots([tmp_path]))
        assert refused.value.key == "save_to"
    values = {"sd_model": str(tmp_path), "lora_a_model": str(source), "save_to": str(tmp_path / "new")}
    assert tools.resolved(tools.TOOLS["merge_lora"], values, Roots([tmp_path]))["save_to"] == values["save_to"]


def test_a_tool_waits_for_trainings_only_if_it_computes_on_the_gpu() -> None:
    values = {"model": "/l", "save_to": "/o"}
    assert job_plan.set_of("tool:resize_lora", {**values, "device": "cpu"}) == NONE
    assert job_plan.set_of("tool:resize_lora", {**values, "device": "cuda:0"}) == gpu_set(None)
    assert job_plan.set_of("tool:merge_lora", {}) == NONE and job_plan.set_of("tool:convert_model", {}) == NONE


def test_the_kind_of_model_can_be_chosen_for_files_that_do_not_tell(tmp_path: Path) -> None:
    assert set(model_kind.FAMILIES) >= {"sd1", "sd2", "sdxl"}
    from kohya_gui.tools_fields import family_of

    assert family_of({"model": str(lora(tmp_path / "a.safetensors", "sd2"))}, ("model",)) == "sd2"
    assert family_of({"model": "/none.ckpt"}, ("model",)) == ""
    assert family_of({"model": "/none.ckpt", "model_family": "sdxl"}, ("model",)) == "sdxl"
