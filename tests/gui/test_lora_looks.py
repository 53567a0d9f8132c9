"""What a tool for LoRA and model files would do, and what it refuses, is known from headers before any job starts."""

import json
from pathlib import Path
from typing import Any

import pytest
from weights_kit import CROSS, lora, model, write

from kohya_gui import machine, tools, weights
from kohya_gui.localization import load
from kohya_gui.paths import Roots
from kohya_gui.prepare import looks_weights
from kohya_gui.prepare.looks import look, notes
from kohya_gui.tabs import metadata_html, reports
from kohya_gui.tabs.charts import bars
from sd_scripts.schema.errors import UserError

WORDS = load(None)


def lines(name: str, /, **values: Any) -> dict[str, str]:
    given = {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}
    return dict(look(tools.TOOLS[name], given, WORDS).lines)


def refused(name: str, /, **values: Any) -> UserError:
    with pytest.raises(UserError) as found:
        lines(name, **values)
    return found.value


@pytest.mark.parametrize("family", list(CROSS))
def test_headers_tell_kind_family_and_rank(tmp_path: Path, family: str) -> None:
    found = weights.weights(lora(tmp_path / "a.safetensors", family, rank=6))
    assert (found.kind, found.family, found.algorithm, found.rank, found.modules) == ("lora", family, "LoRA", 6, 2)
    base = weights.weights(model(tmp_path / "m.safetensors", family))
    assert (base.kind, base.family, base.is_model) == ("checkpoint", family, True)
    noted = write(
        tmp_path / "n.safetensors",
        {"lora_x.hada_w1_a": (2, 2)},
        {"ss_base_model_version": f"{'sdxl_base' if family == 'sdxl' else 'sd_v1' if family == 'sd1' else 'sd_v2'}"},
    )
    assert (weights.weights(noted).family, weights.weights(noted).algorithm) == (family, "LoHa")


def test_peft_names_and_text_encoders_tell_the_family(tmp_path: Path) -> None:
    peft = {"unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight": (4, 2048)}
    assert weights.weights(write(tmp_path / "p.safetensors", peft)).family == "sdxl"
    folder = tmp_path / "adapter"
    folder.mkdir()
    write(folder / "adapter_model.safetensors", peft)
    assert "Stable Diffusion XL" in lines("convert_lora", model=folder, save_to=tmp_path / "new.safetensors")["Reads"]
    text = {"lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight": (4, 1024)}
    found = weights.weights(write(tmp_path / "t.safetensors", text))
    assert (found.family, found.rank) == ("sd2", 4)
    nothing = weights.weights(write(tmp_path / "x.safetensors", {"anything": (2, 2)}))
    assert not nothing.is_network and not nothing.is_model


def test_merging_says_what_is_read_and_written(tmp_path: Path) -> None:
    a, b, base = lora(tmp_path / "a.safetensors"), lora(tmp_path / "b.safetensors"), model(tmp_path / "m.safetensors")
    slots = {"lora_a_model": a, "ratio_a": 0.5, "lora_b_model": b, "ratio_b": 0.5}
    said = lines("merge_lora", **slots, save_to=tmp_path / "new.safetensors", save_precision="fp16")
    assert "b.safetensors: LoRA for Stable Diffusion 1.x, rank 4" in said["Reads"]
    assert said["Writes"].startswith(str(tmp_path / "new.safetensors")) and "about" in said["Writes"]
    said = lines("merge_lora", **slots, sd_model=base, save_to=tmp_path / "new.safetensors")
    assert "LoRA" in said["Reads"]
    there = lines("merge_lora", **slots, save_to=b, overwrite=True)
    assert there["Writes over"].startswith(str(b))
    assert refused("merge_lora", **slots, save_to=b).key == "save_to"
    assert "is read" in refused("merge_lora", **slots, save_to=b).message
    assert refused("merge_lora", lora_a_model=a, ratio_a=1.0, save_to=tmp_path / "n").key == "sd_model"
    assert refused("merge_lora", **{**slots, "ratio_b": 0}, save_to=tmp_path / "n").key == "ratio_b"
    assert refused("merge_lora", sd_model=base, save_to=tmp_path / "n").key == "lora_a_model"
    assert refused("merge_lora", **slots).key == "save_to"


def test_files_of_two_families_are_refused_with_a_sentence(tmp_path: Path) -> None:
    one, xl, base = (
        lora(tmp_path / "one.safetensors"),
        lora(tmp_path / "xl.safetensors", "sdxl"),
        model(tmp_path / "m.safetensors"),
    )
    new = tmp_path / "new.safetensors"
    error = refused("merge_lora", sd_model=base, lora_a_model=one, ratio_a=1, lora_b_model=xl, ratio_b=1, save_to=new)
    assert error.key == "lora_b_model"
    assert error.message == "xl.safetensors is for Stable Diffusion XL, but m.safetensors is for Stable Diffusion 1.x."
    assert refused("merge_lycoris", base_model=base, lycoris_model=xl, output_name=new).key == "lycoris_model"
    assert refused("merge_lycoris", base_model=one, lycoris_model=one, output_name=new).key == "base_model"
    assert refused("merge_lycoris", base_model=base, lycoris_model=base, output_name=new).key == "lycoris_model"
    assert (
        refused("merge_lora", lora_a_model=one, ratio_a=1, lora_b_model=xl, ratio_b=1, save_to=new).key
        == "lora_b_model"
    )
    other = model(tmp_path / "xl-model.safetensors", "sdxl")
    assert refused("extract_lora", model_tuned=base, model_org=other, save_to=new).key == "model_org"
    assert refused("extract_lora", model_tuned=base, model_org=base, save_to=new).key == "model_tuned"
    assert refused("extract_lora", model_tuned=base, model_org=one, save_to=new).key == "model_org"
    assert refused("merge_models", model_a=base, ratio_a=0.5, model_b=other, ratio_b=0.5, output=new).key == "model_b"
    assert refused("interrogate_lora", sd_model=base, model=xl).key == "model"
    chosen = refused("merge_lycoris", base_model=base, lycoris_model=one, output_name=new, model_family="sdxl")
    assert chosen.key == "model_family"


def test_the_rank_of_a_new_file_follows(tmp_path: Path) -> None:
    item = lora(tmp_path / "a.safetensors", rank=8)
    new = tmp_path / "new.safetensors"
    said = lines("resize_lora", model=item, save_to=new, new_rank=2)
    assert said["Rank"] == "from 8 to 2"
    assert (
        "at most 2"
        in lines("resize_lora", model=item, save_to=new, new_rank=2, dynamic_method="sv_fro", dynamic_param=0.9)["Rank"]
    )
    for method, number in (("sv_ratio", 1), ("sv_fro", 2), ("sv_cumulative", 0), ("sv_fro", None)):
        error = refused("resize_lora", model=item, save_to=new, new_rank=2, dynamic_method=method, dynamic_param=number)
        assert error.key == "dynamic_param"
    assert "a-0002" in lines("extract_dylora", model=item, save_to=tmp_path / "a.safetensors", unit=2)["Writes"]
    assert refused("extract_dylora", model=item, save_to=new, unit=9).key == "unit"
    assert "3 files" in lines("extract_dylora", model=item, save_to=tmp_path / "a.safetensors", unit=3)["Writes"]
    shares = lines("svd_merge_lora", lora_a_model=item, ratio_a=0.25, save_to=new, new_rank=4)
    assert shares["Shares"] == "a.safetensors 1"


def test_what_is_damaged_missing_or_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(lora(tmp_path / "a.safetensors").read_bytes()[:900])
    assert "torn" in refused("verify_lora", file=torn).message
    assert refused("verify_lora", file=tmp_path / "none.safetensors").key == "file"
    (tmp_path / "page.safetensors").write_text("<!doctype html><html>")
    assert "web page" in refused("verify_lora", file=tmp_path / "page.safetensors").message
    monkeypatch.setattr(looks_weights, "free_space", lambda path: 1_000)
    error = refused("resize_lora", model=tmp_path / "a.safetensors", save_to=tmp_path / "n.safetensors", new_rank=4)
    assert error.key == "save_to" and "1 kB are free" in error.message
    assert machine is not None


def test_conversion_looks_at_source_and_target(tmp_path: Path) -> None:
    base = model(tmp_path / "m.safetensors", "sdxl")
    values = {"model_to_load": base, "target_model_folder_input": tmp_path, "target_model_type": "safetensors"}
    said = lines("convert_model", **values, target_model_name_input="new", target_save_precision_type="fp16")
    assert said["Writes"].startswith(str(tmp_path / "new.safetensors"))
    assert refused("convert_model", **values, target_model_name_input="m").key == "target_model_name_input"
    wrong = {**values, "target_model_name_input": "n", "source_model_type": "runwayml/stable-diffusion-v1-5"}
    assert refused("convert_model", **wrong).key == "source_model_type"
    away = {**values, "target_model_folder_input": tmp_path / "none", "target_model_name_input": "n"}
    assert refused("convert_model", **away).key == "target_model_folder_input"
    hub = {**values, "model_to_load": "owner/name", "target_model_name_input": "n"}
    assert "Hugging Face" in lines("convert_model", **hub)["Reads"]


def test_pruning_mixing_and_lcm_look_at_their_models(tmp_path: Path) -> None:
    base, other = model(tmp_path / "m.safetensors"), model(tmp_path / "o.safetensors")
    new = tmp_path / "new.safetensors"
    assert "new.safetensors" in lines("prune_model", model_prune=base, prune_output=new, half=True)["Writes"]
    assert refused("prune_model", model_prune=lora(tmp_path / "l.safetensors"), prune_output=new).key == "model_prune"
    shares = {"model_a": base, "ratio_a": 0.7, "model_b": other, "ratio_b": 0.4, "output": new}
    assert lines("merge_models", **shares)["Shares together"].startswith("1.1, not 1")
    assert lines("merge_models", **{**shares, "ratio_b": 0.3})["Shares together"] == "1"
    assert refused("merge_models", model_a=base, ratio_a=1, output=new).key == "model_b"
    assert refused("lcm_convert", model=base, name=new, model_type="SDXL").key == "model_type"
    assert "new" in lines("lcm_convert", model=base, name=new, model_type="SD15")["Writes"]


def test_fields_say_what_their_files_are(tmp_path: Path) -> None:
    item = lora(tmp_path / "a.safetensors", metadata={"modelspec.title": "<b>A</b>"})
    roots = Roots([tmp_path])
    said = notes(tools.TOOLS["merge_lora"], {"lora_a_model": str(item), "lora_b_model": "/etc/passwd"}, roots, WORDS)
    assert said["lora_a_model"]["text"].startswith("LoRA for Stable Diffusion 1.x, rank 4") and len(said) == 1
    torn = tmp_path / "t.safetensors"
    torn.write_bytes(b"12345678")
    assert notes(tools.TOOLS["verify_lora"], {"file": str(torn)}, roots, WORDS)["file"]["say"] == "error"
    said = notes(tools.TOOLS["edit_metadata"], {"model": str(item)}, roots, WORDS)
    assert said["title"]["text"] == "Now: <b>A</b>"


# ---------------------------------------------------------------- what is shown


def test_the_table_of_a_network_is_escaped_and_not_endless() -> None:
    evil = "<script>x</script>"
    modules = [{"name": f"m{n}{evil}", "kind": "lora", "rank": 4, "alpha": 2.0, "norm": 0.5} for n in range(1000)]
    modules += [{"name": "n", "norm": float("nan"), "rank": "x", "alpha": None}, "no module"]  # type: ignore[list-item]
    table = {"modules": modules, "blocks": [{"name": evil, "norm": 1.5, "modules": 3}], "problems": [evil] * 30}
    html = reports.network(table, WORDS)
    assert "<script" not in html and "and 701 more modules" in html and html.count("<tr>") == 301
    assert "and 10 more" in html and 'role="img"' in html
    assert "Problems" not in reports.network({"modules": modules[:1], "problems": []}, WORDS)
    assert [reports.network(each, WORDS) for each in ({}, {"modules": 3}, {"modules": [1], "blocks": "x"})] == [""] * 3


def test_bars_have_names_numbers_and_finite_lengths() -> None:
    html = bars([("IN00 <", 2.0), ("MID", 0.0)], 'a "title"')
    assert html.count("<rect") == 2 and "IN00 &lt;" in html and 'aria-label="a &quot;title&quot;"' in html
    assert bars([], "t").endswith("</svg>") and 'width="0.0"' in bars([("a", 0.0)], "t")


def test_hostile_notes_are_shown_as_text(tmp_path: Path) -> None:
    evil = '"><img src=x onerror=alert(1)>'
    tags = json.dumps({evil: {f"{evil}{n}": n for n in range(2000)}})
    notes_ = {"ss_tag_frequency": tags, "modelspec.title": evil, evil: evil, "ss_network_args": "{not json",
              "modelspec.thumbnail": "data:image/svg+xml;base64,AAAA", "ss_bucket_info": "[]",
              "x": "y" * 5_000_000}  # fmt: skip
    html = metadata_html.sheet(str(lora(tmp_path / "a.safetensors", metadata=notes_)), WORDS)
    assert "<img" not in html and len(html) < 800_000
    assert "and 1,700 more" in html and "{not json" in html


def test_fifty_megabytes_of_notes_cost_no_more_than_their_reading(tmp_path: Path) -> None:
    html = metadata_html.sheet(str(lora(tmp_path / "a.safetensors", metadata={"x": "<" * 50_000_000})), WORDS)
    assert len(html) < 200_000 and "<<" not in html
    with pytest.raises(UserError, match="metadata"):
        metadata_html.sheet(str(lora(tmp_path / "b.safetensors").rename(tmp_path / "b.ckpt")), WORDS)
