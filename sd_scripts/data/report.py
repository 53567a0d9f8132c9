"""What was found, for people (a table), for the event stream, and for the metadata of trained files."""

import json
import os
from collections import Counter
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from sd_scripts.data.dataset import Dataset, DatasetGroup


def report_rows(group: "DatasetGroup") -> list[dict[str, Any]]:
    """One row a subset: dataset, folder, repeats, images, captions, reg, conditioning."""
    rows = []
    for number, dataset in enumerate(group.datasets):
        for subset in dataset.subsets:
            rows.append(
                {
                    "dataset": number,
                    "folder": subset.spec.name,
                    "repeats": subset.spec.num_repeats,
                    "images": len(subset.images),
                    "captions": subset.captions_found,
                    "class_tokens": subset.spec.class_tokens or "",
                    "reg": subset.spec.is_reg,
                }
            )
    return rows


def print_report(group: "DatasetGroup", console: Console | None = None, steps: str = "") -> None:
    """Print folders, buckets and the length of an epoch; warnings come last, where they are seen."""
    console = console or Console()
    table = Table(title="Pictures", title_justify="left")
    for name in ("folder", "repeats", "pictures", "captions found", "without captions"):
        table.add_column(name, justify="left" if name in ("folder", "without captions") else "right")
    for row in report_rows(group):
        words = f'"{row["class_tokens"]}"' if row["class_tokens"] else "no words"
        missing = row["images"] - row["captions"]
        table.add_row(
            row["folder"] + (" (regularisation)" if row["reg"] else ""),
            str(row["repeats"]),
            str(row["images"]),
            str(row["captions"]),
            f"{missing} -> {words}" if missing > 0 else "-",
        )
    console.print(table)
    for number, dataset in enumerate(group.datasets):
        buckets = ", ".join(f"{b.size[0]}x{b.size[1]}: {b.count}" for b in dataset.buckets)
        spec = dataset.spec
        console.print(f"data set {number}: batch size {spec.batch_size}, buckets {buckets}", markup=False)
    console.print(
        f"{group.images} pictures, {group.repeated_images} with repeats, {group.batches_per_epoch} batches an epoch"
        + (f", {steps}" if steps else ""),
        markup=False,
    )
    for warning in group.warnings:
        console.print(f"WARNING: {warning}", style="bold yellow", markup=False)


def bucket_events(group: "DatasetGroup") -> list[dict[str, Any]]:
    """Buckets as the event stream has them."""
    return [{"size": list(bucket.size), "count": bucket.count} for bucket in group.buckets]


def tag_frequency(group: "DatasetGroup") -> dict[str, dict[str, int]]:
    """How often each tag stands in the captions of each folder."""
    counts: dict[str, Counter[str]] = {}
    for dataset in group.datasets:
        for name, counter in _dataset_tags(dataset).items():
            counts.setdefault(name, Counter()).update(counter)
    return {name: dict(counter) for name, counter in counts.items()}


def _dataset_tags(dataset: "Dataset") -> dict[str, dict[str, int]]:
    counts: dict[str, Counter[str]] = {}
    for subset in dataset.subsets:
        counts.setdefault(subset.spec.name, Counter()).update(subset.tag_counts())
    return {name: dict(counter) for name, counter in counts.items()}


def bucket_info(dataset: "Dataset") -> dict[str, Any] | None:
    """Buckets with counts and the mean difference of shapes; None without buckets."""
    if dataset.spec.bucketing is not None and not dataset.spec.bucketing.enabled:
        return None
    buckets = {
        str(number): {"resolution": list(bucket.size), "count": bucket.count}
        for number, bucket in enumerate(dataset.buckets)
    }
    return {"buckets": buckets, "mean_img_ar_error": dataset.mean_ar_error}


def metadata_facts(group: "DatasetGroup") -> dict[str, str]:
    """The `ss_*` entries that describe the data, as texts.

    With a description file every data set is listed in `ss_datasets`; else the single data set's values stand alone.
    """
    facts = {
        "ss_num_train_images": str(group.num_train_images),
        "ss_num_reg_images": str(group.num_reg_images),
        "ss_num_batches_per_epoch": str(group.batches_per_epoch),
    }
    if group.blueprint.from_file:
        facts["ss_datasets"] = json.dumps([_dataset_entry(dataset) for dataset in group.datasets])
        facts["ss_dataset_dirs"] = json.dumps(_directories(group, reg=False, number_twins=True))
        facts["ss_tag_frequency"] = json.dumps(tag_frequency(group))
        return facts
    dataset = group.datasets[0]
    rule = dataset.spec.bucketing
    buckets = rule is not None and rule.enabled
    first = dataset.subsets[0].spec
    facts |= {
        "ss_batch_size_per_device": str(dataset.spec.batch_size),
        "ss_resolution": str(rule.resolution if rule is not None else None),
        "ss_enable_bucket": str(bool(buckets)),
        "ss_bucket_no_upscale": str(bool(rule is not None and rule.no_upscale)),
        "ss_min_bucket_reso": str(rule.rounded_range()[0] if buckets and rule is not None else None),
        "ss_max_bucket_reso": str(rule.rounded_range()[1] if buckets and rule is not None else None),
        "ss_color_aug": str(first.color_aug),
        "ss_flip_aug": str(first.flip_aug),
        "ss_random_crop": str(first.random_crop),
        "ss_shuffle_caption": str(first.captions.shuffle_caption),
        "ss_keep_tokens": str(first.captions.keep_tokens),
        "ss_dataset_dirs": json.dumps(_directories(group, reg=False)),
        "ss_reg_dataset_dirs": json.dumps(_directories(group, reg=True)),
        "ss_tag_frequency": json.dumps(tag_frequency(group)),
        "ss_bucket_info": json.dumps(bucket_info(dataset)),
    }
    return facts


def _directories(group: "DatasetGroup", *, reg: bool, number_twins: bool = False) -> dict[str, dict[str, int]]:
    """Folders with repeats and pictures; folders of the same name get " (2)", " (3)" if `number_twins`."""
    result: dict[str, dict[str, int]] = {}
    for dataset in group.datasets:
        for subset in dataset.subsets:
            if subset.spec.is_reg != reg:
                continue
            name, count = subset.spec.name, 1
            while number_twins and name in result:
                count += 1
                name = f"{subset.spec.name} ({count})"
            result[name] = {"n_repeats": subset.spec.num_repeats, "img_count": len(subset.images)}
    return result


def _dataset_entry(dataset: "Dataset") -> dict[str, Any]:
    spec, rule = dataset.spec, dataset.spec.bucketing
    buckets = rule is None or rule.enabled
    return {
        "is_dreambooth": spec.kind != "finetune",
        "batch_size_per_device": spec.batch_size,
        "num_train_images": dataset.num_train_images,
        "num_reg_images": dataset.num_reg_images,
        "resolution": list(rule.resolution) if rule is not None else None,
        "enable_bucket": buckets,
        "min_bucket_reso": rule.rounded_range()[0] if buckets and rule is not None else None,
        "max_bucket_reso": rule.rounded_range()[1] if buckets and rule is not None else None,
        "tag_frequency": _dataset_tags(dataset),
        "bucket_info": bucket_info(dataset),
        "subsets": [_subset_entry(dataset, number) for number in range(len(dataset.subsets))],
    }


def _subset_entry(dataset: "Dataset", number: int) -> dict[str, Any]:
    subset = dataset.subsets[number]
    spec, rules = subset.spec, subset.spec.captions
    entry: dict[str, Any] = {
        "img_count": len(subset.images),
        "num_repeats": spec.num_repeats,
        "color_aug": spec.color_aug,
        "flip_aug": spec.flip_aug,
        "random_crop": spec.random_crop,
        "shuffle_caption": rules.shuffle_caption,
        "keep_tokens": rules.keep_tokens,
        "keep_tokens_separator": rules.keep_tokens_separator,
        "secondary_separator": rules.secondary_separator,
        "enable_wildcard": rules.enable_wildcard,
        "caption_prefix": rules.caption_prefix,
        "caption_suffix": rules.caption_suffix,
        "resize_interpolation": spec.resize_interpolation,
    }
    if spec.image_dir is not None:
        entry["image_dir"] = os.path.basename(os.path.normpath(spec.image_dir))
    if spec.kind == "finetune":
        entry["metadata_file"] = spec.name
    else:
        entry |= {"class_tokens": spec.class_tokens, "is_reg": spec.is_reg}
    return entry
