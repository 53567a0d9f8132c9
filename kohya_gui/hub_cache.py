"""Models named by their place on the Hugging Face Hub, and where the Hub's library keeps those it has fetched."""

import os
import re
from pathlib import Path

# a part that begins with a dot would be a path such as ../models
_HUB_ID = re.compile(r"(?!\.)[\w.-]+/(?!\.)[\w.-]+")


def is_hub_id(text: str) -> bool:
    """Whether a model is named by its place on the Hugging Face Hub rather than by a path."""
    return bool(_HUB_ID.fullmatch(text)) and not os.path.exists(text)


def cached(model: str) -> str:
    """The folder of a Hub model that was fetched before, as it was fetched last; "" if it was not, or not whole.

    Args:
        model: a name such as "owner/model".
    """
    if not is_hub_id(model):
        return ""
    home = os.environ.get("HF_HOME") or os.path.expanduser("~/.cache/huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub"))
    folder = hub / f"models--{model.replace('/', '--')}"
    try:
        version = (folder / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""
    found = folder / "snapshots" / version
    return str(found) if version.isalnum() and (found / "model_index.json").is_file() else ""
