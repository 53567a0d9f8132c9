"""What a tool on the page is: one record, and the shelf it stands on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kohya_gui.phrases import phrase

PREFIX = "tool:"
DEVICE = object()
"""As a first value: the GPU where there is one, else the processor."""
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Tool:
    """One script as the page shows it.

    `keys` are the options on the form, in reading order; `start` what it opens with where that is not the script's own
    default, `sent` what is always given. `changes` describe options otherwise than the script does. A tool with `gpu`
    waits for trainings on the GPU. `folder` is the option that says where it works. In the texts of `blanks` blanks at
    the ends count.

    `page` is a section of fields that only the form has; `into` makes of everything that stands on the form the options
    of the script that are not there under their own name (None: not given), and `choose` the script itself.
    `endings` are the endings that a written file may have, by the option that names it; the first one is added to a
    name without any of them, unless the model that the option `follows` names is a folder. `models` are the options
    whose file or folder tells the kind of base model, the first that does counts (they take no names of the Hub);
    under those of `seen` stands what their file is. `labels` are names of fields in kohya_ss that are not those here.
    `reports` is the file in the job's folder with what the page shows as a table. `dry` is the text of the second
    button. A tool that `only_reads` has nothing to undo.
    """

    name: str
    title: str
    does: str
    script: str
    section: type
    keys: tuple[str, ...]
    folder: str
    button: str = phrase("Start")
    gpu: bool = False
    start: Values = field(default_factory=dict)
    sent: Values = field(default_factory=dict)
    changes: Mapping[str, Values] = field(default_factory=dict)
    wide: tuple[str, ...] = ()
    blanks: tuple[str, ...] = ()
    page: type | None = None
    into: Callable[[Values], Values] | None = None
    choose: Callable[[Values], str] | None = None
    endings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    models: tuple[str, ...] = ()
    seen: tuple[str, ...] = ()
    follows: str = ""
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    reports: str = ""
    dry: str = phrase("Dry run")
    only_reads: bool = False

    @property
    def command(self) -> str:
        """The name under which jobs know it."""
        return PREFIX + self.name


@dataclass(frozen=True)
class Shelf:
    """One sub-tab with tools side by side on sub-tabs of its own, or a single one; `manual`: captions by hand, too."""

    name: str
    title: str
    tools: tuple[str, ...]
    manual: bool = False
