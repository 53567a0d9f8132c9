"""train_db, fine_tune and sdxl_train: whole models trained, written in every form, reloaded, resumed."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from effects import metadata, shows
from fixed_noise import fall, fixed_draws
from runs import Finished, launch, train_here

from sd_scripts.families.sd import StableDiffusion
from sd_scripts.families.sdxl import StableDiffusionXL
from sd_scripts.schema.model import ModelOptions

# The losses of the first four steps of each trainer on its tiny model; they change when the draws or the maths do.
GOLDEN = {
    "train_db": [1.31504, 1.07941, 1.21862, 1.29633],
    "fine_tune": [1.30666, 1.08208, 1.21810, 1.29645],
    "sdxl_train": [1.15909, 1.06559, 1.10623, 1.19025],
}
BUCKETS: dict[str, dict[str, Any]] = {"sdxl_train": {"bucket_reso_steps": 32}}


@dataclass
class Trainer:
    """One of the three trainers with its model and pictures."""

    command: str
    model: Path
    data: Path
    root: Path
    runs: int = 0

    def __call__(self, *, data: Path | None = None, **options: Any) -> Finished:
        self.runs += 1
        options = {"learning_rate": 1e-4, **BUCKETS.get(self.command, {}), **options}
        out = options.pop("out", None) or self.root / f"run {self.runs}"
        model = options.pop("model", self.model)
        if "in_json" in options:
            options |= {"caption_extension": None}
        finished = train_here(model, data or self.data, out, self.command, **options)
        assert finished.code == 0, finished.of("error")
        return finished

    def source(self) -> dict[str, Any]:
        """Where the pictures are: class folders for DreamBooth, a metadata file for fine-tuning."""
        if self.command == "train_db":
            return {}
        folder = self.data / "2_photo"
        entries = {path.stem: {"caption": path.with_suffix(".txt").read_text()} for path in folder.glob("*.png")}
        file = self.root / "metadata.json"
        file.write_text(json.dumps(entries), encoding="utf-8")
        return {"in_json": file, "data": folder}

    def load(self, path: Path) -> dict[str, torch.Tensor]:
        """Every weight of a model, by part."""
        family = StableDiffusionXL() if self.command.startswith("sdxl") else StableDiffusion()
        model = family.load(ModelOptions(pretrained_model_name_or_path=str(path)), torch.float32, "cpu")
        parts = {"unet": model.unet, "vae": model.vae}
        parts |= {f"text{number}": encoder for number, encoder in enumerate(model.text_encoders)}
        states = {part: module.state_dict() for part, module in parts.items()}
        return {f"{part}.{name}": value for part, state in states.items() for name, value in state.items()}


@pytest.fixture(params=GOLDEN)
def trainer(request: pytest.FixtureRequest, tiny_sd1: Path, deep_sdxl: Path, thumbs: Path, tmp_path: Path) -> Trainer:
    model = deep_sdxl if request.param == "sdxl_train" else tiny_sd1
    return Trainer(request.param, model, thumbs, tmp_path)


@dataclass
class Made:
    """The trainers, each with one plain run of a single step that several tests look at."""

    models: dict[str, Path]
    data: Path
    root: Path
    known: dict[str, Finished] = field(default_factory=dict)
    runs: int = 0

    def trainer(self, command: str) -> tuple[Trainer, dict[str, Any]]:
        """A trainer with a folder of its own, and the options that name its pictures."""
        self.runs += 1
        root = self.root / f"{command} {self.runs}"
        root.mkdir()
        trainer = Trainer(command, self.models[command], self.data, root)
        return trainer, trainer.source()

    def plain(self, command: str) -> Finished:
        """One step, written as one safetensors file."""
        if command not in self.known:
            trainer, source = self.trainer(command)
            self.known[command] = trainer(**source, save_model_as="safetensors", max_train_steps=1)
        return self.known[command]


@pytest.fixture(scope="module")
def made(tiny_sd1: Path, deep_sdxl: Path, thumbs: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    # of a single file, which most of these write, the layers are known beforehand: no shallow model
    models = {"train_db": tiny_sd1, "fine_tune": tiny_sd1, "sdxl_train": deep_sdxl}
    return Made(models, thumbs, tmp_path_factory.mktemp("full training"))


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """The parts in which any weight differs."""
    assert before.keys() == after.keys()
    return {name.split(".")[0] for name, value in before.items() if not torch.equal(value, after[name])}


@shows("in_json", by=("full",))
def test_losses_and_result(trainer: Trainer) -> None:
    run = trainer(**trainer.source(), save_model_as="safetensors")
    print(trainer.command, run.losses)
    assert run.losses == pytest.approx(GOLDEN[trainer.command], rel=1e-3)
    result = run.out / "small.safetensors"
    notes = metadata(result)
    assert {name.split(".")[0] for name in notes} <= {"modelspec", "format"}
    assert "/" not in notes["modelspec.architecture"]
    expected = {"unet", "text0"} if trainer.command == "train_db" else {"unet"}
    assert changed(trainer.load(trainer.model), trainer.load(result)) == expected


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train_db", "sdxl_train"])
def test_photos_are_learned_by_heart(made: Made, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, source = made.trainer(command)
    with fixed_draws(monkeypatch):
        run = trainer(**source, max_train_steps=40, learning_rate=1e-3, save_model_as="safetensors")
    print(command, fall(run))
    assert fall(run) < 0.5


# fine_tune writes as train_db does, and every form of every version is tested with the families.
FORMS = [("train_db", form) for form in ("ckpt", "safetensors", "diffusers", "diffusers_safetensors")]
FORMS += [("sdxl_train", "ckpt"), ("sdxl_train", "diffusers")]


@shows("save_model_as", by=("full",))
@pytest.mark.parametrize(("command", "form"), FORMS)
def test_every_form_holds_the_same_model_and_trains_on(made: Made, command: str, form: str) -> None:
    trainer, source = made.trainer(command)
    run = trainer(**source, save_model_as=form, max_train_steps=1, save_precision="float")
    name = "small" if form.startswith("diffusers") else f"small.{form}"
    event = run.of("save")[-1]
    assert Path(event["path"]).name == name
    assert event["bytes"] > 1_000_000 and event["checked"]
    assert changed(trainer.load(run.out / name), trainer.load(made.plain(command).out / "small.safetensors")) == set()
    if form in ("ckpt", "diffusers"):
        further = trainer(**source, model=run.out / name, max_train_steps=1)
        kept = further.out / ("small.ckpt" if (run.out / name).is_file() else "small")
        assert kept.exists(), "written as it was read"


@pytest.mark.parametrize("command", ["train_db", "sdxl_train"])
def test_opens_in_diffusers(made: Made, command: str) -> None:
    trainer, source = made.trainer(command)
    run = made.plain(command)
    folder = trainer(**source, save_model_as="diffusers_safetensors", max_train_steps=1)
    kind = StableDiffusionXLPipeline if command.startswith("sdxl") else StableDiffusionPipeline
    single = kind.from_single_file(
        str(run.out / "small.safetensors"), config=str(folder.out / "small"), local_files_only=True
    )
    opened = kind.from_pretrained(str(folder.out / "small"), local_files_only=True)
    for part in ("unet", "vae", "text_encoder"):
        one, two = getattr(single, part).state_dict(), getattr(opened, part).state_dict()
        assert all(torch.equal(one[name], value) for name, value in two.items()), part


@shows("stochastic_rounding", "full_bf16", by=("full",))
@pytest.mark.parametrize("command", ["train_db", "sdxl_train"])
def test_bf16_in_everything_with_stochastic_rounding(made: Made, command: str) -> None:
    """At 1e-6 a step is a hundredth of what bf16 can show: by nearest rounding hardly a weight moves."""
    trainer, source = made.trainer(command)
    common: dict[str, Any] = {"mixed_precision": "bf16", "full_bf16": True, "save_model_as": "safetensors"}
    common |= {**source, "learning_rate": 1e-6, "max_train_steps": 2}
    plain = trainer(**common)
    rounded = trainer(**common, stochastic_rounding=True)
    assert rounded.losses[0] == plain.losses[0]
    start = {name: value.to(torch.bfloat16).float() for name, value in trainer.load(trainer.model).items()}
    lost, kept = (
        sum(int((value != start[name]).sum()) for name, value in trainer.load(run.out / "small.safetensors").items())
        for run in (plain, rounded)
    )
    assert kept > 2 * lost


@shows("reg_data_dir", "prior_loss_weight", by=("full",))
def test_prior_pictures_weigh_less(tiny_sd1: Path, thumbs: Path, tmp_path: Path) -> None:
    db = Trainer("train_db", tiny_sd1, thumbs, tmp_path)
    shutil.copytree(thumbs, tmp_path / "regular")
    alike = db(reg_data_dir=tmp_path / "regular", prior_loss_weight=1.0, max_train_steps=8)
    lighter = db(reg_data_dir=tmp_path / "regular", prior_loss_weight=0.0, max_train_steps=8)
    assert len(alike.losses) == 8
    assert 0.0 in lighter.losses and 0.0 not in alike.losses


@shows("stop_text_encoder_training", by=("full",))
def test_the_text_encoder_stops(tiny_sd1: Path, thumbs: Path, tmp_path: Path) -> None:
    db = Trainer("train_db", tiny_sd1, thumbs, tmp_path)
    options: dict[str, Any] = {"save_model_as": "safetensors", "max_train_steps": 3}
    one = db(**options, stop_text_encoder_training=1, save_every_n_steps=1)
    at = {
        step: db.load(one.out / name)
        for step, name in (
            (1, "small-step00000001.safetensors"),
            (2, "small-step00000002.safetensors"),
            (3, "small.safetensors"),
        )
    }
    assert changed(db.load(tiny_sd1), at[1]) == {"unet", "text0"}
    assert changed(at[1], at[2]) == changed(at[2], at[3]) == {"unet"}
    none = db(**options, stop_text_encoder_training=-1)
    assert changed(db.load(tiny_sd1), db.load(none.out / "small.safetensors")) == {"unet"}


@shows("block_lr", "fused_backward_pass", by=("full",))
def test_sdxl_takes_class_folders_rates_of_blocks_and_adafactor_in_the_backward_pass(
    deep_sdxl: Path, thumbs: Path, tmp_path: Path
) -> None:
    xl = Trainer("sdxl_train", deep_sdxl, thumbs, tmp_path)
    rates = ["0"] * 22 + ["1e-3"]
    blocks = xl(block_lr=",".join(rates), save_model_as="safetensors", max_train_steps=2)
    assert blocks.of("step")[-1]["lr"] == {"block22": pytest.approx(1e-3)}
    before, after = xl.load(deep_sdxl), xl.load(blocks.out / "small.safetensors")
    differing = {name.rsplit(".", 1)[0] for name, value in before.items() if not torch.equal(value, after[name])}
    assert differing == {"unet.conv_norm_out", "unet.conv_out"}
    options: dict[str, Any] = {
        "optimizer_type": "AdaFactor",
        "optimizer_args": ["relative_step=False", "scale_parameter=False", "warmup_init=False"],
        "max_grad_norm": 0,
        "max_train_steps": 3,
        "save_model_as": "safetensors",
    }
    plain, fused = xl(**options), xl(**options, fused_backward_pass=True)
    assert fused.losses == pytest.approx(plain.losses, rel=1e-5)
    norms = [[event.get("grad_norm") for event in run.of("step")] for run in (plain, fused)]
    assert all(norms[0]) and norms[1] == [None] * 3, "each gradient is gone once its weight has moved"


@shows("train_text_encoder", "learning_rate_te1", "learning_rate_te2", by=("full",))
def test_sdxl_trains_both_text_encoders_at_their_rates(deep_sdxl: Path, thumbs: Path, tmp_path: Path) -> None:
    xl = Trainer("sdxl_train", deep_sdxl, thumbs, tmp_path)
    options: dict[str, Any] = {"train_text_encoder": True, "save_model_as": "safetensors", "max_train_steps": 2}
    both = xl(**options, learning_rate_te1=1e-4, learning_rate_te2=2e-4)
    assert both.of("step")[-1]["lr"] == {
        "unet": pytest.approx(1e-4),
        "text_encoder1": pytest.approx(1e-4),
        "text_encoder2": pytest.approx(2e-4),
    }
    start = xl.load(deep_sdxl)
    assert changed(start, xl.load(both.out / "small.safetensors")) == {"unet", "text0", "text1"}
    second = xl(**options, learning_rate_te1=0.0)
    assert changed(start, xl.load(second.out / "small.safetensors")) == {"unet", "text1"}


@pytest.mark.slow
@pytest.mark.parametrize("command", ["fine_tune"])
def test_launched(command: str, tiny_sd1: Path, deep_sdxl: Path, thumbs: Path, tmp_path: Path) -> None:
    model = deep_sdxl if command == "sdxl_train" else tiny_sd1
    options = {**BUCKETS.get(command, {}), "save_model_as": "safetensors", "max_train_steps": 2}
    source = Trainer(command, model, thumbs, tmp_path).source()
    run = launch(model, source.pop("data", thumbs), tmp_path / "out", command=command, **options, **source)
    assert run.code == 0, run.console[-2000:]
    assert (tmp_path / "out" / "small.safetensors").is_file()
