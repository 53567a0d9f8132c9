"""The page: tabs in order, theme, script, background queue; and its launch."""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr
from starlette.middleware import Middleware

from kohya_gui import served, spoken, widgets
from kohya_gui.exposure import Exposure, SameSite
from kohya_gui.gate import Gate
from kohya_gui.layouts import LAYOUTS
from kohya_gui.lean import LeanBlocks, finish_all, pack_facts
from kohya_gui.localization import Language, Words
from kohya_gui.phrases import phrase
from kohya_gui.sent import Dressing, PageScript, script_text
from kohya_gui.services import Services
from kohya_gui.tabs import about
from kohya_gui.tabs.jobs import JobsTab
from kohya_gui.tabs.settings_tab import SettingsTab
from kohya_gui.tabs.training import TabSpec, TrainingTab
from kohya_gui.tabs.utilities import UtilitiesTab
from kohya_gui.theme import theme
from sd_scripts.schema.errors import UserError
from sd_scripts.schema.tabs import TABS

ASSETS = Path(__file__).resolve().parent / "assets"
QUEUE_SECONDS = 1.0
# what all browsers together may have waiting: ten busy ones need a few dozen
MOST_EVENTS = 500

FIRST_TAB = "lora"
Facts = dict[str, dict[str, Any]]
"""Form -> key -> what the page's script knows about the field."""
TRAINING_TABS = tuple(TabSpec.of(tab, LAYOUTS[tab.name]) for tab in TABS.values())
"""What each training tab of the page is made from."""


@dataclass
class App:
    """The built page."""

    blocks: LeanBlocks
    services: Services
    script: PageScript
    _stop: threading.Event = field(default_factory=threading.Event)

    def launch(
        self,
        exposure: Exposure,
        *,
        port: int,
        inbrowser: bool = False,
        root_path: str | None = None,
        debug: bool = False,
    ) -> str:
        """Serve the page without blocking; gives its address.

        Args:
            exposure: address, tunnel and login.
            port: 0 takes 7860 or the next free one.
            inbrowser: open the default browser.
            root_path: prefix behind a reverse proxy.
            debug: show tracebacks of the page's own mistakes in the terminal.
        Raises:
            UserError: if the port is taken or the address is not this machine's.
        """
        guard: list[Any] = [
            Middleware(SameSite, local_only=exposure.local and not exposure.auth),
            Middleware(Gate),
            Middleware(spoken.Asked),
            Middleware(Dressing, script=self.script),
        ]
        services = self.services
        board = services.tensorboard
        own = [*served.routes(services.roots, services.jobs, board, services.words.error), *self.script.routes()]
        # as `Blocks.queue(max_size=...)` does, which would make the whole web application once more
        self.blocks._queue.max_size = MOST_EVENTS
        try:
            _, url, _ = self.blocks.launch(
                server_name=exposure.listen,
                server_port=port or None,
                share=exposure.share,
                auth=exposure.auth,
                inbrowser=inbrowser,
                root_path=root_path,
                debug=debug,
                prevent_thread_lock=True,
                quiet=True,
                show_error=True,
                run_history=False,
                footer_links=[],
                theme=theme(),
                css=(ASSETS / "style.css").read_text(encoding="utf-8"),
                enable_monitoring=False,
                ssr_mode=False,
                max_file_size="64mb",
                allowed_paths=[],
                app_kwargs={"middleware": guard, "routes": own},
            )
        except OSError as error:
            raise UserError(
                f"The page cannot be served on {exposure.listen}:{port or '7860 and the following'}: {error}."
            ) from error
        threading.Thread(target=self._run_queue, name="queue", daemon=True).start()
        threading.Thread(target=self.script.text, name="page", daemon=True).start()
        return str(url)

    def _run_queue(self) -> None:
        """Start waiting jobs while the page runs, whether or not a browser looks."""
        while not self._stop.wait(QUEUE_SECONDS):
            try:
                self.services.jobs.tick()
            except (OSError, UserError) as error:
                print(f"The queue could not be looked at: {error}", flush=True)

    def close(self) -> None:
        """End the server and the queue's thread; running trainings go on."""
        self._stop.set()
        self.services.tensorboard.stop()
        self.blocks.close()


def _script(blocks: LeanBlocks, facts: Facts, services: Services, language: Language) -> str:
    """The page's script with everything it knows, in one language."""
    words = services.words

    def finish(text: str, html: bool) -> str:
        return words.finish(text, language, html=html)

    known = {tab: {key: finish_all(fact, finish) for key, fact in entries.items()} for tab, entries in facts.items()}
    with words.building():
        said = _script_words(words)
    data = {
        "first": services.first_tab,
        "language": language.name,
        "words": finish_all(said, finish),
        "facts": pack_facts(known),
        "page": blocks.packed(finish),
    }
    return script_text((ASSETS / "script.js").read_text(encoding="utf-8"), data)


def _script_words(words: Words) -> dict[str, str]:
    """What the script says by itself; everything else comes from Python when it is needed."""
    return {
        "Browse": words("Browse"),
        "Undo this change": words("Undo this change"),
        "No field has this name": words("No field has this name"),
        "Close": words("Close"),
        "Copied": words("Copied"),
        "{n} added": words("{n} added"),
        "{n} more appear with other choices": words("{n} more appear with other choices"),
        "Undo {n} changes here": words("Undo {n} changes here"),
        "Defaults for these {n}": words("Defaults for these {n}"),
        "not set": words("not set"),
        "another …": words("another …"),
    }


def _build_head(services: Services, jobs: JobsTab) -> None:
    words = services.words
    with gr.Row(elem_id="k-head"):
        jobs.build_status()
        if services.exposed:
            widgets.html(f'<span title="{escape(services.reach)}">{words("open to others, with a login")}</span>')
        names = "".join(
            f'<option value="{escape(name)}">{escape(own)}</option>' for name, own in words.offered().items()
        )
        title = words("Language")
        widgets.html(
            "<h1>Kohya's GUI</h1>"
            f'<select class="k-plain k-language" aria-label="{title}" title="{title}">{names}</select>'
            f'<button class="k-plain" data-theme="1" title="{words("Light or dark")}">{words("Theme")}</button>',
            elem_id="k-manners",
        )


def build(services: Services) -> App:
    """Make the page."""
    services.words.listen(spoken.current)
    with services.words.building():
        blocks, facts = _build(services)
    return App(blocks, services, PageScript(partial(_script, blocks, facts, services), services.words))


def _build(services: Services) -> tuple[LeanBlocks, Facts]:
    """All components, and what the script knows about the forms among them."""
    words = services.words
    tabs = [TrainingTab(spec, services) for spec in TRAINING_TABS]
    utilities = UtilitiesTab(services)
    settings = SettingsTab(services)
    jobs = JobsTab(services, {tab.spec.command: tab.spec.name for tab in tabs})
    hand_made: tuple[tuple[str, str, Callable[[], None]], ...] = (
        ("utilities", phrase("Utilities"), utilities.build),
        ("jobs", phrase("Jobs"), jobs.build),
        ("settings", phrase("Settings"), settings.build),
        ("about", phrase("About"), partial(about.build, services)),
    )
    with LeanBlocks(title="Kohya's GUI", analytics_enabled=False, fill_width=True) as blocks:
        _build_head(services, jobs)
        for tab in tabs:
            tab.build_memory()
        with gr.Tabs(elem_id="top", overflow_behavior="wrap", selected=services.first_tab or FIRST_TAB):
            for tab in tabs:
                with gr.Tab(words(tab.spec.title), id=tab.spec.name, elem_id=f"top-{tab.spec.name}"):
                    if tab.spec.name == FIRST_TAB:
                        jobs.build_away()
                    tab.build()
            for name, title, make in hand_made:
                with gr.Tab(words(title), id=name, elem_id=f"top-{name}", render_children=name == "jobs"):
                    make()
        utilities.wire(blocks)
        settings.wire(blocks)
        jobs.wire(blocks)
    facts: Facts = dict(utilities.facts)
    for tab in tabs:
        facts |= {tab.spec.name: tab.facts, **tab.more_facts}
    return blocks, facts
