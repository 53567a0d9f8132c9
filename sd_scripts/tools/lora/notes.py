"""What a network file made by a tool says about itself: `ss_*`, `modelspec.*` and the two hashes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from sd_scripts.networks.hashes import with_hashes
from sd_scripts.networks.netfile import NetworkFile
from sd_scripts.schema.saving import SavingOptions
from sd_scripts.training.metadata import base_model_version
from sd_scripts.training.modelspec import modelspec

DYNAMIC = "Dynamic"
_HASHES = ("sshs_model_hash", "sshs_legacy_hash")


def same(values: Iterable[float | None]) -> str:
    """The one value that all modules have, as it is noted for ranks and alphas: `16`, `0.5`; else `Dynamic`."""
    found = {value for value in values if value is not None}
    return f"{found.pop():g}" if len(found) == 1 else DYNAMIC


def kind_from(version: str, noted: str = "") -> dict[str, bool]:
    """v2, v_param and is_sdxl from "sd1", "sd2" or "sdxl" and a noted `ss_base_model_version`."""
    return {
        "v2": version == "sd2" or (not version and noted.startswith("sd_v2")),
        "v_param": noted.startswith("sd_") and noted.endswith("_v"),
        "is_sdxl": version == "sdxl" or (not version and noted.startswith("sdxl")),
    }


def kind_of_files(files: Sequence[NetworkFile]) -> dict[str, bool]:
    """v2, v_param and is_sdxl of network files, as the first that tells has it."""
    noted = next(filter(None, (file.metadata.get("ss_base_model_version", "") for file in files)), "")
    return kind_from(next((file.version for file in files if file.version), ""), noted)


def network_notes(
    files: Sequence[NetworkFile],
    *,
    dim: str,
    alpha: str,
    module: str = "networks.lora",
    arguments: str | None = None,
) -> dict[str, str]:
    """The `ss_*` entries that other programs need to apply a network made of these files.

    Args:
        files: what it was made of; the base model is theirs.
        dim, alpha: as `same` writes them.
        module: which network.
        arguments: `ss_network_args`, as JSON, where there are any.
    """
    kind = kind_of_files(files)
    noted = next(filter(None, (file.metadata.get("ss_base_model_version", "") for file in files)), "")
    entries = {
        "ss_v2": str(kind["v2"]),
        "ss_base_model_version": noted or base_model_version(kind),
        "ss_network_module": module,
        "ss_network_dim": dim,
        "ss_network_alpha": alpha,
    }
    return entries if arguments is None else {**entries, "ss_network_args": arguments}


def spec_notes(
    target: Path,
    kind: Mapping[str, bool],
    sources: Sequence[Path] = (),
    *,
    adapter: str | None = "lora",
    now: float | None = None,
) -> dict[str, str]:
    """The `modelspec.*` entries of a file made by a tool.

    Args:
        target: the file; its name is the title.
        kind: v2, v_param, is_sdxl.
        sources: what it was merged from, if it was.
        adapter: "lora", or None for a whole model.
        now: the time to note, in unix seconds.
    """
    merged = ", ".join(source.stem for source in sources) or None
    saving = SavingOptions(output_name=target.stem, metadata_merged_from=merged)
    return modelspec(saving, kind, timestamp=time.time() if now is None else now, adapter=adapter)


def hashed(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata with the hashes of these tensors, which must be as they will lie in the file."""
    ready = {name: value.detach().to("cpu").contiguous() for name, value in tensors.items()}
    return with_hashes(ready, {key: value for key, value in metadata.items() if key not in _HASHES})
