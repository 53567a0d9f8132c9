"""Where the pictures of a run come from, as the trainer decides it: class folders, a metadata file, control pictures,
or a description of data sets."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kohya_gui.command import PROJECT
from kohya_gui.paths import nearest_name
from kohya_gui.problem import Problem
from sd_scripts.schema.buckets import LONGEST, Bucketing, check_bucketing
from sd_scripts.schema.captions import CaptionRules
from sd_scripts.schema.commands import COMMANDS
from sd_scripts.schema.dataset_file import DatasetTables, Rules, read_dataset_config
from sd_scripts.schema.dataset_kinds import Kind
from sd_scripts.schema.errors import DataError, UserError
from sd_scripts.schema.folders import (
    ClassFolder,
    ignored_entries,
    list_folder,
    normalise_extension,
    scan_class_folders,
)
from sd_scripts.schema.values import parse_resolution

_RULES = tuple(CaptionRules.__dataclass_fields__)
_BUCKET_KEYS = {"resolution", "enable_bucket", "bucket_reso_steps", "min_bucket_reso", "max_bucket_reso"}
Values = Mapping[str, Any]
Allowed = Callable[[str], bool]


@dataclass(frozen=True)
class Source:
    """Pictures that are treated alike: of a folder, or of a metadata file.

    `key` is the option to blame; `files` are the pictures found in the folder (None for a metadata file, whose
    pictures lie in `image_dir`); `control_dir` holds a mask or control picture for each, and with `control_only`
    nothing else.
    """

    kind: Kind
    path: str
    key: str
    repeats: int
    extension: str
    rules: CaptionRules
    class_tokens: str = ""
    regularisation: bool = False
    files: ClassFolder | None = None
    image_dir: str = ""
    control_dir: str = ""
    control_only: bool = False


@dataclass(frozen=True)
class Part:
    """Sources that share buckets and batches. `bucketing` is None where a metadata file prescribes the sizes.

    `split` is the share of pictures kept for validation, chosen by `seed`.
    """

    sources: tuple[Source, ...]
    bucketing: Bucketing | None
    batch_size: int
    split: float = 0.0
    seed: int = 0


@dataclass
class Found:
    """The parts of a run, and what is wrong with them. `unknown` says that foreign code supplies the pictures."""

    parts: list[Part] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    unknown: bool = False

    def add(self, key: str | None, error: UserError, fix: Values | None = None) -> None:
        """Note a mistake as a sentence beside a field; `fix` holds the values that would mend it."""
        text = error.message.rstrip(".")
        self.problems.append(Problem("error", key, f"{text[:1].upper()}{text[1:]}.", error.hint, fix or {}))


def find(values: Values, command: str = "train_network", allowed: Allowed | None = None) -> Found:
    """The sources of the pictures.

    Args:
        values: every option of the trainer; "prepares" says that the metadata file is made before the training.
        command: the trainer, which decides what kinds of data set there may be.
        allowed: whether a path may be looked at; None allows all.
    """
    found = Found()
    looker = _Looker(values, command, allowed or (lambda path: True), found)
    if values.get("dataset_class"):
        found.unknown = True
    elif values.get("dataset_config"):
        looker.described(Path(str(values["dataset_config"])))
    elif looker.needs_control:
        looker.controlled()
    elif (values.get("in_json") or values.get("prepares")) and "finetune" in looker.kinds:
        looker.metadata()
    elif "dreambooth" in looker.kinds:
        looker.folders()
    return found


def pick(key: str, *tables: Values, default: Any = None) -> Any:
    """The value of the first table that has one."""
    return next((table[key] for table in tables if table.get(key) is not None), default)


class _Looker:
    """One look at the values of one form."""

    def __init__(self, values: Values, command: str, allowed: Allowed, found: Found) -> None:
        self.values, self.command, self.allowed, self.found = values, command, allowed, found
        self.needs_control = COMMANDS[command].method in ("controlnet", "lllite")
        self.masks = bool(values.get("masked_loss")) and not self.needs_control
        self.kinds = Rules.of(command, self.masks).kinds
        self.extension = str(values.get("caption_extention") or values.get("caption_extension") or ".caption")

    # ------------------------------------------------------------------ kinds

    def described(self, path: Path) -> None:
        key = "dataset_config"
        try:
            tables, _ = read_dataset_config(path, Rules.of(self.command, self.masks))
        except UserError as error:
            self.found.problems.append(Problem("error", key, error.message, error.hint))
            return
        for each in tables:
            chosen = [
                source
                for number, table in enumerate(each.subsets)
                if (source := self._described(path, each, number, table)) is not None
            ]
            self._part(chosen, each.dataset, each.general)

    def _described(self, path: Path, tables: DatasetTables, number: int, table: Values) -> Source | None:
        key = "dataset_config"
        lists = (table, tables.dataset, tables.general, self.values)
        repeats = int(pick("num_repeats", *lists[:-1], default=self.values.get("dataset_repeats") or 1))
        place = os.path.basename(path)
        if repeats < 1:
            text = f"{place}: a data set is left out, its num_repeats is {repeats}."
            self.found.problems.append(Problem("warning", key, text, "Set it to 1 or more."))
            return None
        extension = normalise_extension(str(pick("caption_extension", *lists[:-1], default=self.extension)))
        common: dict[str, Any] = {
            "key": key,
            "repeats": repeats,
            "extension": extension,
            "rules": self._rules(*lists),
            "class_tokens": str(table.get("class_tokens") or ""),
            "regularisation": bool(table.get("is_reg")),
        }
        if tables.kind == "finetune":
            return self._of_metadata(str(table["metadata_file"]), str(table.get("image_dir") or ""), common)
        control = table.get("conditioning_data_dir") or ""
        return self._of_folder(str(table["image_dir"]), str(control), tables.kind == "controlnet", common)

    def controlled(self) -> None:
        values = self.values
        for key in ("in_json", "reg_data_dir"):
            if values.get(key):
                text = f"{key} does not go with control pictures."
                hint = "Use the folder of pictures and that of control pictures."
                self.found.problems.append(Problem("error", key, text, hint))
        folder, control = values.get("train_data_dir"), values.get("conditioning_data_dir")
        if not folder:
            return
        source = self._of_folder(str(folder), str(control or ""), True, self._common("train_data_dir", 1))
        if source is not None and source.files is not None and not source.files.images:
            self._nothing_flat(str(folder))
            return
        self._part([source] if source else [])

    def _nothing_flat(self, folder: str) -> None:
        try:
            below = [each.path.name for each in scan_class_folders(folder, contents=False) if not each.flat]
        except DataError:
            below = []
        text = f"No picture lies directly in {folder!r}; control pictures need one flat folder."
        fix = {"train_data_dir": os.path.join(folder, below[0])} if len(below) == 1 else {}
        hint = f"Choose the folder {below[0]!r} inside it." if below else "Choose the folder that holds the pictures."
        self.found.problems.append(Problem("error", "train_data_dir", text, hint, fix))

    def metadata(self) -> None:
        values = self.values
        if values.get("prepares") and values.get("train_data_dir"):
            # the list is made from these pictures just before the training
            common = self._common("train_data_dir", int(values.get("dataset_repeats") or 1))
            files = self._of_folder(str(values["train_data_dir"]), "", False, common)
            self._part([replace(files, kind="finetune")] if files else [])
            return
        common = self._common("in_json", int(values.get("dataset_repeats") or 1))
        source = self._of_metadata(str(values["in_json"]), str(values.get("train_data_dir") or ""), common)
        self._part([source] if source else [])

    def folders(self) -> None:
        sources: list[Source] = []
        for key, regular in (("train_data_dir", False), ("reg_data_dir", True)):
            root = str(self.values.get(key) or "")
            if not root or not self._may(root, key):
                continue
            try:
                folders = scan_class_folders(root, self.extension)
                self.found.problems += passed_over(root, key, folders)
                folders = [folder for folder in folders if self._may(str(folder.path), key)]
            except DataError as error:
                near = None if os.path.exists(root) else nearest_name(Path(root))
                self.found.add(key, error, {key: str(near)} if near and near.parent == Path(root).parent else {})
                continue
            sources += [self._of_class(folder, key, regular) for folder in folders]
        self._part(sources)

    def _of_class(self, folder: ClassFolder, key: str, regular: bool) -> Source:
        masks = str(self.values.get("conditioning_data_dir") or "") if self.masks and not regular else ""
        inside = os.path.join(masks, folder.path.name)
        common = self._common(key, folder.repeats)
        return Source(
            "dreambooth",
            str(folder.path),
            class_tokens=folder.class_tokens,
            regularisation=regular,
            files=folder,
            control_dir=inside if masks and os.path.isdir(inside) else masks,
            **common,
        )

    # ------------------------------------------------------------------ pieces

    def _common(self, key: str, repeats: int) -> dict[str, Any]:
        rules, extension = self._rules(self.values), normalise_extension(self.extension)
        return {"key": key, "repeats": max(repeats, 1), "extension": extension, "rules": rules}

    def _rules(self, *tables: Values) -> CaptionRules:
        known = CaptionRules.__dataclass_fields__
        return CaptionRules(**{name: pick(name, *tables, default=known[name].default) for name in _RULES})

    def _may(self, path: str, key: str) -> bool:
        if self.allowed(path):
            return True
        self.found.problems.append(Problem("error", key, f"{path} lies outside the folders open to the page."))
        return False

    def _of_folder(self, folder: str, control: str, only: bool, common: dict[str, Any]) -> Source | None:
        folder = os.path.join(PROJECT, folder)
        control = os.path.join(PROJECT, control) if control else ""
        if not self._may(folder, common["key"]) or (control and not self._may(control, "conditioning_data_dir")):
            return None
        try:
            files = list_folder(folder, common["extension"])
        except DataError as error:
            self.found.add(common["key"], error)
            return None
        kind: Kind = "controlnet" if only else "dreambooth"
        return Source(kind, folder, files=files, control_dir=control, control_only=only, **common)

    def _of_metadata(self, file: str, image_dir: str, common: dict[str, Any]) -> Source | None:
        file = os.path.join(PROJECT, file)
        image_dir = os.path.join(PROJECT, image_dir) if image_dir else ""
        if not self._may(file, common["key"]) or (image_dir and not self._may(image_dir, common["key"])):
            return None
        return Source("finetune", file, image_dir=image_dir, **common)

    def _part(self, sources: Sequence[Source], dataset: Values | None = None, general: Values | None = None) -> None:
        """Add what these sources make together, if their sizes can be worked out."""
        kept = {(source.path, source.control_dir): source for source in reversed(sources)}
        chosen = tuple(source for source in sources if kept[source.path, source.control_dir] is source)
        if not chosen:
            return
        tables = (dataset or {}, general or {}, self.values)
        in_file = any(key in table for key in _BUCKET_KEYS for table in tables[:-1])
        try:
            rule = self._bucketing(*tables)
        except UserError as error:
            self.found.add("dataset_config" if in_file else error.key, error)
            return
        if rule is None and chosen[0].kind != "finetune" and self.values.get("dataset_config"):
            # for folders chosen in the form the rules of the options say it
            text = "The resolution is missing, in the form and in the description."
            self.found.problems.append(Problem("error", "resolution", text, "512 suits SD 1, 1024 suits SDXL."))
        batch = int(pick("batch_size", *tables[:-1], default=self.values.get("train_batch_size") or 1))
        seed = int(pick("validation_seed", *tables, default=self.values.get("seed") or 0))
        split = min(max(float(pick("validation_split", *tables, default=0.0)), 0.0), 1.0)
        self.found.parts.append(Part(chosen, rule, max(batch, 1), split, seed))

    def _bucketing(self, *tables: Values) -> Bucketing | None:
        resolution = pick("resolution", *tables)
        if not resolution:
            return None
        if isinstance(resolution, str):
            resolution = parse_resolution(resolution)
        rule = Bucketing(
            (int(resolution[0]), int(resolution[1])),
            bool(pick("enable_bucket", *tables, default=False)),
            int(pick("min_bucket_reso", *tables, default=256)),
            int(pick("max_bucket_reso", *tables, default=1024)),
            int(pick("bucket_reso_steps", *tables, default=64)),
            bool(pick("bucket_no_upscale", *tables, default=False)),
        )
        # numbers far out of reason would take hours to count
        for key, side in (("resolution", max(rule.resolution)), ("max_bucket_reso", rule.maximum)):
            if side > LONGEST:
                raise UserError(f"{key} is {side}, above {LONGEST} pixels.", key, "512 to 2048 is usual.")
        check_bucketing(rule, 32 if COMMANDS[self.command].family == "sdxl" else 8)
        return rule


def passed_over(root: str, key: str, found: Sequence[ClassFolder]) -> Iterator[Problem]:
    """Folders that training passes over because of their names, and pictures that lie outside all folders."""
    if found and found[0].flat:
        return
    names = ignored_entries(root)
    folders = [name for name in names if os.path.isdir(os.path.join(root, name))]
    full = [name for name in folders if list_folder(os.path.join(root, name)).images]
    loose = len(names) - len(folders)
    if full:
        shown = ", ".join(repr(name) for name in full[:3]) + (" and others" if len(full) > 3 else "")
        better = f"10_{full[0].lstrip('_ ')}"
        hint = f"Rename {full[0]!r} to {better!r}: the number is how often each picture is shown."
        # alone, a folder without a number can be trained by choosing it: each picture once
        fix = {} if found or len(full) > 1 else {key: os.path.join(root, full[0])}
        severity = "warning" if found else "error"
        yield Problem(severity, key, f"{shown} has pictures, but no number in front of its name.", hint, fix)
    if loose and found:
        text = f"{loose} pictures lie beside the folders in {os.path.basename(root)!r} and are not trained."
        yield Problem("warning", key, text, "Move them into one of the folders.")
    if not found and not full:
        yield _nothing(root, key, folders)


def refuse_links(folder: str, names: Iterable[str], key: str, allowed: Allowed | None) -> None:
    """Links lead out of a folder: what they show must be open to the page as well.

    Raises:
        DataError: naming the first that is not.
    """
    places = (os.path.join(folder, name) for name in names) if allowed is not None else ()
    bad = next((place for place in places if os.path.islink(place) and allowed and not allowed(place)), None)
    if bad is not None:
        raise DataError(f"{bad} is a link that leads outside the folders open to the page", key)


def _nothing(root: str, key: str, folders: Sequence[str]) -> Problem:
    """There are no pictures; perhaps a folder further down, or the one above, is meant."""
    text = f"There are no pictures in {root!r}."
    for name in folders[:20]:
        below = os.path.join(root, name)
        try:
            inside = [each for each in scan_class_folders(below) if each.images]
        except DataError:
            continue
        if inside:
            return Problem("error", key, text, f"The folder {name!r} inside it has some.", {key: below})
    return Problem("error", key, text, "Put them there, or into a folder such as 10_name inside.")
