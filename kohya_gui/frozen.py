"""A quick start: what Gradio's import and the building of the page do for nothing is left out.

Both make some hundred thousand objects that live as long as the program, which the garbage collector looks through
again and again; and for each of its components Gradio reads, parses and compares its own source, to keep stub files for
editors up to date. That is half of the time until the page answers.
"""

import gc
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_where = inspect.getfile


def _without_stubs(object: Any) -> str:
    """As `inspect.getfile`, but Gradio's components have none: then it writes no stub files."""
    if isinstance(object, type) and object.__module__.startswith("gradio"):
        raise OSError("no stub file is wanted")
    return _where(object)


@contextmanager
def quick_start() -> Iterator[None]:
    """Around the import of Gradio and the building of the page; afterwards everything is as it was, and what was made
    is left alone by the collector for good."""
    gc.disable()
    inspect.getfile = _without_stubs
    try:
        yield
    finally:
        inspect.getfile = _where
        gc.freeze()
        gc.enable()
