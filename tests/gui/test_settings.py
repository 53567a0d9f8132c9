"""config.toml: keys of kohya_ss and of ours, unknown and hostile ones, changes that keep what is not understood."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from field_values import another

from kohya_gui import config_toml, start
from kohya_gui.settings import Remembered, Settings, check_default, form_fields, load_settings
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.tabs import TABS

KOHYA = """config_dir = "./presets"
[settings]\nuse_shell = true\nenable_info_tooltip = false
[server]\nallowed_paths = ["/data"]
[model]\nmodels_dir = "./models"\noutput_name = "mine"\nsave_precision = "bf16"\nsdxl = true
[folders]\noutput_dir = "./outputs"
[basic]\noptimizer = "AdamW"\nmax_resolution = "768,768"\nseed = 7\nmax_train_steps = 0\nlearning_rate_te = 2e-6
[advanced]\nvae_dir = "./vae"\nclip_skip = 1\nnoise_offset = 0\nxformers = "sdpa"\nlowvram = true\nclipskip = 2
[accelerate_launch]\nnum_cpu_threads_per_process = 4\n[metadata]\ntitle = "t"\n[wd14_caption]\nbatch_size = 8
[flux1]\nae = "x"\n[network]\nnetwork_dim = 32\n[strange]\nx = 1
"""


def settings(path: Path, text: str) -> Settings:
    """What a settings file with this text says."""
    path.write_text(text, encoding="utf-8")
    return load_settings(path)


def test_settings_of_kohya_ss_become_first_values_of_every_tab(tmp_path: Path) -> None:
    found = settings(tmp_path / "config.toml", KOHYA)
    common = {
        "output_name": "mine", "save_precision": "bf16", "output_dir": "./outputs", "optimizer_type": "AdamW",
        "resolution": "768,768", "seed": 7, "num_cpu_threads_per_process": 4, "metadata_title": "t",
        "model_family": "sdxl", "xformers": False, "sdpa": True,
    }  # fmt: skip
    assert found.values("lora") == {**common, "network_dim": 32}
    assert found.values("dreambooth") == {**common, "learning_rate_te": 2e-6, "train_text_encoder": True}
    assert set(found.defaults) == set(TABS)
    assert (found.allowed_paths, found.tooltips) == (["/data"], False)
    folders = {"pretrained_model_name_or_path": "./models", "vae": "./vae", "@open": "./presets"}
    assert found.start_folders == folders
    said = {line.key: line.kind for line in found.report}
    assert said == {
        "settings.use_shell": "retired", "advanced.lowvram": "retired", "advanced.clipskip": "unknown",
        "flux1": "kept", "strange": "unknown",
    }  # fmt: skip
    assert "clip_skip" in next(line.message for line in found.report if line.key == "advanced.clipskip")
    assert load_settings(tmp_path / "none.toml") == Settings(tmp_path / "none.toml")


def test_tools_have_first_values_too(tmp_path: Path) -> None:
    text = """[wd14_caption]\nbatch_size = 4\ncaption_postfix = ", x"\nuse_quality_tags = true\nthreshold = 1
debug = "maybe"
[dataset_preparation]\nclass_prompt = "dog"\nutil_training_images_repeat_input = 30"""
    found = settings(tmp_path / "config.toml", text)
    assert found.tool_values("tool_wd14_caption", ("batch_size", "postfix")) == {"batch_size": 4, "postfix": ", x"}
    folders = ("util_class_prompt_input", "util_training_images_repeat_input")
    assert list(found.tool_values("lora_folders", folders).values()) == ["dog", 30]
    assert {line.key: line.kind for line in found.report} == {
        "wd14_caption.use_quality_tags": "retired",
        "wd14_caption.threshold": "unknown",
        "wd14_caption.debug": "repaired",
    }


def test_our_own_tables_come_last(tmp_path: Path) -> None:
    text = """[settings]\ntheme = "dark"\nlanguage = "de"\n[basic]\nseed = 1
[defaults.finetune]\nseed = 2\nlearning_rate = "1e-6"\nhuggingface_token = "hf_x"\nnonsense = 1
allow_plugins = true\n[defaults.nothing]\nseed = 3\n[start_folders]\ntrain_data_dir = "/pictures"\nvae = 5"""
    found = settings(tmp_path / "config.toml", text)
    assert found.values("finetune") == {"seed": 2, "learning_rate": 1e-6} and found.values("lora") == {"seed": 1}
    assert (found.theme, found.language, found.start_folders) == ("dark", "de", {"train_data_dir": "/pictures"})
    assert {line.key for line in found.report} == {
        "defaults.finetune.nonsense",
        "defaults.finetune.allow_plugins",
        "defaults.nothing",
    }


@pytest.mark.parametrize(
    "text",
    [
        "a = ",
        "\x00",
        "[" * 5000,
        'a = "C:\\pictures"',
        "x" * 2_000_000,
        "a = [" + "[" * 3000,
    ],
    ids=range(6),
)
def test_a_damaged_file_is_one_sentence(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(UserError):
        load_settings(path)
    with pytest.raises(UserError):
        config_toml.change(path, lambda content: content.update(seed=1))
    assert path.read_text() == text


def test_values_of_the_wrong_type_are_reported_and_left_out(tmp_path: Path) -> None:
    text = """server = 1\nmodel = []\n[settings]\ntheme = 5\nlanguage = []\n[basic]\nseed = "x"\nmax_resolution = []
[advanced]\nxformers = {}\nclip_skip = 1979-05-27\n[metadata]\ntitle = nan\n[defaults]\nlora = 3"""
    found = settings(tmp_path / "config.toml", text)
    assert {line.kind for line in found.report} >= {"repaired"} and "seed" not in found.values("lora")
    assert (found.theme, found.language, found.allowed_paths) == ("", "", [])


def test_a_change_keeps_what_it_does_not_know(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("# mine\n[strange]\nwhen = 1979-05-27\n[strange.inner]\nlist = [1, 2]\n[defaults.lora]\nseed = 1\n")
    before = tomllib.loads(path.read_text())
    config_toml.change(path, lambda content: config_toml.put(content, ("defaults", "lora", "seed"), 2))
    after = tomllib.loads(path.read_text())
    assert after == {**before, "defaults": {"lora": {"seed": 2}}}
    assert "# mine" in (tmp_path / "config.toml.bak").read_text()
    config_toml.change(path, lambda content: config_toml.put(content, ("defaults", "lora", "seed"), None))
    assert tomllib.loads(path.read_text()) == {"strange": before["strange"]}
    assert sorted(item.name for item in tmp_path.iterdir()) == ["config.toml", "config.toml.bak"]


@pytest.mark.parametrize(
    ("tab", "key", "text", "value"),
    [
        ("lora", "network_dim", "16", 16),
        ("dreambooth", "learning_rate", "1e-6", 1e-6),
        ("finetune", "create_buckets", "false", False),
        ("lora", "network_dim", "many", None),
        ("lora", "network_dim", "", None),
        ("lora", "nothing", "1", None),
        ("lora", "huggingface_token", "hf_abc", None),
        ("lora", "allow_plugins", "true", None),
        ("nothing", "seed", "1", None),
    ],
)
def test_a_default_is_checked_by_the_schema(tab: str, key: str, text: str, value: Any) -> None:
    if value is not None:
        assert check_default(tab, key, text) == value
        return
    with pytest.raises(UserError):
        check_default(tab, key, text)


def test_every_field_of_every_tab_can_have_a_default(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    wanted: dict[str, dict[str, Any]] = {}
    for tab in TABS:
        for key, option in form_fields(tab).items():
            value = another(option)
            if option.kind != "secret" and value is not None:
                wanted.setdefault(tab, {})[key] = value
    config_toml.change(path, lambda content: content.update(defaults=wanted))
    found = load_settings(path)
    assert not found.report and {tab: found.values(tab) for tab in TABS} == wanted
    assert sum(map(len, wanted.values())) > 1000


def test_dialogs_begin_in_the_folder_that_the_settings_name(tmp_path: Path) -> None:
    memory = Remembered(tmp_path / "page.json", {"vae": "/vae"})
    assert memory.last_folder("vae") == "/vae" and memory.last_folder("resume") == ""
    memory.use_folder("resume", "/states")
    assert (memory.last_folder("vae"), memory.last_folder("logging_dir")) == ("/vae", "/states")
    memory.use_folder("vae", "/newer")
    assert memory.last_folder("vae") == "/newer"


def test_a_named_settings_file_must_be_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert start.main(["--config", str(tmp_path / "none.toml"), "--jobs_dir", str(tmp_path)]) == 2
    assert "does not exist" in capsys.readouterr().err
    (tmp_path / "broken.toml").write_text("[x")
    assert start.main(["--config", str(tmp_path / "broken.toml"), "--jobs_dir", str(tmp_path)]) == 2
    assert "cannot be read" in capsys.readouterr().err
    (tmp_path / "config.toml").write_text("[basic]\nsed = 1\n")
    assert start._settings(None, tmp_path).path == tmp_path / "config.toml"
    assert "Did you mean seed" in capsys.readouterr().err
