"""The About tab: versions, who can reach the page, where its files are."""

import platform
from html import escape
from importlib import metadata

from kohya_gui import widgets
from kohya_gui.services import Services


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def build(services: Services) -> None:
    """Make the tab."""
    words = services.words
    rows = [
        (words("Who can reach this page"), services.reach),
        (words("Folders open to the page"), ", ".join(str(folder) for folder in services.roots.folders)),
        (words("Jobs are kept in"), str(services.jobs.root)),
        ("Python", platform.python_version()),
        *((name, _version(name)) for name in ("gradio", "torch", "diffusers", "transformers", "accelerate")),
    ]
    lines = "".join(
        f"<tr><th>{escape(label)}</th><td>{escape(text or words('not installed'))}</td></tr>" for label, text in rows
    )
    text = words("Trains Stable Diffusion on your own pictures. A training runs on even when this page is closed.")
    keys = words("Ctrl+S saves the configuration, Ctrl+Enter starts the training, Esc closes a dialog.")
    widgets.html(
        f"<h2>{words('About')}</h2><p>{escape(text)}</p><p class='k-quiet'>{escape(keys)}</p>"
        f"<table class='k-table'>{lines}</table>",
        elem_classes=["k-card", "k-about"],
    )
