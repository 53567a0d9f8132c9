"""What was found, for people (a table), for the event stream, and for the metadata of trained files."""

import os
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sd_scripts.schema.steps import batch_count

if TYPE_CHECKING:
    from sd_scripts.data.dataset import Dataset, DatasetGroup


@dataclass(frozen=True)
class ReportTable:
    """A table to print: title, column names, rows of texts."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def report_rows(group: "DatasetGroup") -> list[dict[str, Any]]:
    """One row a subset: dataset, folder, repeats, images, captions, class_tokens, reg."""
    return [
        {
            "dataset": number,
            "folder": subset.spec.name,
            "repeats": subset.spec.num_repeats,
            "images": len(subset.images),
            "captions": subset.captions_found,
            "class_tokens": subset.spec.class_tokens or "",
            "reg": subset.spec.is_reg,
        }
        for number, dataset in enumerate(group.datasets)
        for subset in dataset.subsets
    ]


def report_tables(group: "DatasetGroup") -> list[ReportTable]:
    """Folders with what was found in them, and buckets with their pictures."""
    folders = []
    for row in report_rows(group):
        words = f'"{row["class_tokens"]}"' if row["class_tokens"] else "no words"
        missing = row["images"] - row["captions"]
        name = row["folder"] + (" (regularisation)" if row["reg"] else "")
        instead = f"{missing}: {words}" if missing > 0 else "-"
        folders.append((name, str(row["repeats"]), str(row["images"]), str(row["captions"]), instead))
    buckets = []
    for number, dataset in enumerate(group.datasets):
        size = dataset.spec.batch_size
        for bucket in dataset.buckets:
            batches = batch_count([bucket.count], size)
            text = f"{bucket.size[0]}x{bucket.size[1]}"
            buckets.append((str(number + 1), text, str(bucket.count), str(batches), str(size)))
    return [
        ReportTable("Folders", ("folder", "repeats", "pictures", "captions found", "without caption"), tuple(folders)),
        ReportTable("Buckets", ("data set", "size", "pictures x repeats", "batches", "batch size"), tuple(buckets)),
    ]


def tag_frequency(group: "DatasetGroup") -> dict[str, dict[str, int]]:
    """How often each tag stands in the captions of each folder; a folder used by several data sets counts once."""
    counts: dict[str, Counter[str]] = {}
    seen = set()
    for subset in (subset for dataset in group.datasets for subset in dataset.subsets):
        if subset.spec.identity not in seen:
            seen.add(subset.spec.identity)
            counts.setdefault(subset.spec.name, Counter()).update(subset.tag_counts())
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


def dataset_facts(group: "DatasetGroup") -> list[dict[str, Any]]:
    """One entry a data set, as `ss_datasets` lists them in the metadata of trained files."""
    return [_dataset_entry(dataset) for dataset in group.datasets]


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
