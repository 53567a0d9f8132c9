"""Messages from Python to the page's own script, and short ones to the person."""

import time
from html import escape
from typing import Any

import gradio as gr


def channel(**message: Any) -> dict[str, Any]:
    """A message for `kohya.receive`; the time makes two equal messages two messages.

    Args:
        message: any of fields (marks and notes, if they are new), looked (the plan was made), sheet (title and html
            of a dialog), close, top (tab to show), go (field to show), browse (dialog to open), later (look at the plan
            again soon), again (look again after so many milliseconds, if somebody still looks).
    """
    return {**message, "t": time.time()}


def join_script(tab: str) -> str:
    """The script of a tab's channel: hands `trigger` and `server` over, and every new message to `kohya.receive`."""
    return f"kohya.join('{tab}', trigger, server); watch('value', () => kohya.receive('{tab}', props.value))"


def warn(text: str) -> None:
    """Show a warning in the corner for a while. Gradio takes it for HTML, and names of files may hold anything."""
    gr.Warning(escape(text, quote=False))


def tell(text: str) -> None:
    """The same for good news."""
    gr.Info(escape(text, quote=False))
