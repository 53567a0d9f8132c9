"""What every tab gets: the folders it may touch, the jobs, the words, the settings of this start."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from kohya_gui.counting import Counter
from kohya_gui.jobs import JobStore
from kohya_gui.localization import Words
from kohya_gui.memory import MemoryPlanner
from kohya_gui.paths import Roots
from kohya_gui.settings import Remembered, Settings
from kohya_gui.tensorboard import TensorBoard

FORETELL = "KOHYA_GUI_FORETELL"
"""Environment variable: "off" keeps the page from asking trainers about runs in the background."""


@dataclass(frozen=True)
class Services:
    """Made once at start, shared by all tabs and sessions; holds nothing that belongs to one session.

    `home` is the folder for the page's own files (saved configurations, thumbnails). `settings` are those of
    config.toml. `start` are values that `start_tab` opens with, if `start_name` names where they come from (the demo);
    `first_tab` is the tab shown first ("" for the first one). `reach` says in one sentence who can open the page.
    `foretell` says whether plans may ask the trainers in the background, which takes processor time.
    `headless` is accepted for old scripts: the page never opens a dialog on the desktop anyway.
    """

    roots: Roots
    jobs: JobStore
    words: Words
    home: Path
    remembered: Remembered
    reach: str = ""
    exposed: bool = False
    headless: bool = False
    settings: Settings = field(default_factory=Settings)
    start: Mapping[str, Any] = field(default_factory=dict)
    start_name: str = ""
    start_tab: str = "lora"
    first_tab: str = ""
    foretell: bool = field(default_factory=lambda: os.environ.get(FORETELL) != "off")

    @cached_property
    def counter(self) -> Counter:
        """Looks through the pictures for all tabs and sessions."""
        return Counter()

    @cached_property
    def memory(self) -> MemoryPlanner | None:
        """Asks the trainers themselves about runs; None where nobody wants that."""
        return MemoryPlanner(allow_plugins=self.jobs.allow_plugins) if self.foretell else None

    @cached_property
    def tensorboard(self) -> TensorBoard:
        """The one TensorBoard of this page."""
        return TensorBoard(self.roots)
