"""What every tab gets: the folders it may touch, the jobs, the words, the settings of this start."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kohya_gui.jobs import JobStore
from kohya_gui.localization import Words
from kohya_gui.paths import Roots


@dataclass(frozen=True)
class Services:
    """Made once at start, shared by all tabs and sessions; holds nothing that belongs to one session.

    `home` is the folder for the page's own files (saved configurations, thumbnails). `demo` are the values the LoRA tab
    opens with, or None; `first_tab` is the tab shown first ("" for the first one). `reach` says in one sentence who
    can open the page. `headless` is accepted for old scripts: the page never opens a dialog on the desktop anyway.
    """

    roots: Roots
    jobs: JobStore
    words: Words
    home: Path
    reach: str = ""
    headless: bool = False
    allow_plugins: bool = False
    demo: Mapping[str, Any] | None = field(default=None)
    first_tab: str = ""
