"""Reads the flags of `kohya_gui.py` and starts the page, or hands over to the command line."""

import argparse
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kohya_gui import frozen, password
from sd_scripts.schema.errors import UserError

if TYPE_CHECKING:
    from kohya_gui.exposure import Exposure
    from kohya_gui.services import Services
    from kohya_gui.settings import Settings

PROJECT = Path(__file__).resolve().parent.parent
SUBCOMMANDS = ("train", "command", "check", "jobs")


def parser() -> argparse.ArgumentParser:
    """The flags of the page; those of kohya_ss v22 to v26 keep their names and meaning."""
    made = argparse.ArgumentParser(
        prog="kohya_gui.py",
        description="A page in the browser that trains Stable Diffusion on your pictures.",
        epilog=f"Without a browser: kohya_gui.py {{{','.join(SUBCOMMANDS)}}} --help",
    )
    add = made.add_argument
    add(
        "--listen",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on; another than this machine's own needs a login",
    )
    add("--server_port", type=int, default=0, metavar="PORT", help="port; 0 takes 7860 or the next free one")
    add("--username", default="", help="name of the login")
    add(
        "--password",
        default="",
        help="password of the login; better in the variable KOHYA_GUI_PASSWORD, or asked for if only --username is "
        "given; made and printed where one is needed and none is given",
    )
    add("--inbrowser", action="store_true", help="open the browser")
    add("--share", action="store_true", help="ask for a public address (with a login)")
    add("--do_not_share", action="store_true", help="overrides --share")
    add("--headless", action="store_true", help="no dialogs on the desktop (there are none anyway)")
    add("--language", metavar="NAME", help="language of the page: a file in localizations/")
    add("--root_path", metavar="PREFIX", help="prefix of the address behind a reverse proxy")
    add("--debug", action="store_true", help="show tracebacks of the page's own mistakes")
    add("--demo", action="store_true", help="make the small demo project, fill it in and start its training")
    add("--jobs_dir", type=Path, metavar="FOLDER", help="where the folder of job folders lies (default: the project)")
    add("--config", type=Path, metavar="FILE", help="settings file (default: config.toml in the folder of the jobs)")
    add(
        "--allow_plugins",
        action="store_true",
        help="let configurations name foreign network, optimizer and scheduler classes",
    )
    add(
        "--allow_folder",
        "--allowed_root",
        action="append",
        default=[],
        type=Path,
        metavar="FOLDER",
        help="open this folder to the page; may be repeated",
    )
    for old in ("--use-ipex", "--use-rocm", "--do_not_use_shell", "--noverify"):
        add(old, action="store_true", help=argparse.SUPPRESS)
    add("--requirements", help=argparse.SUPPRESS)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run; gives the exit code: 0, or 2 for something the person can put right."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if words and words[0] in SUBCOMMANDS:
            from kohya_gui import cli

            return cli.main(words)
        if argv is None:
            password.leave_the_process_list(words)
        return serve(parser().parse_args(words))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2


def _usual_folders(home: Path) -> list[Path]:
    """The folders open to the page without being asked for.

    A container or a service often has / as its home and current folder, which would open everything; that must be
    asked for.
    """
    found = [PROJECT, home, Path.home(), Path.cwd()]
    return [folder for folder in found if folder.resolve() != Path(folder.resolve().anchor)]


def _settings(named: Path | None, home: Path) -> "Settings":
    """The settings in the file that was named, or in the usual one; what is not understood is said in the terminal.

    Raises:
        UserError: if a named file is missing, or the file cannot be read.
    """
    from kohya_gui import settings

    path = named.expanduser() if named is not None else home / settings.CONFIG_NAME
    if named is not None and not path.is_file():
        raise UserError(f"The settings file {path} does not exist.", hint="Choose another one with --config.")
    found = settings.load_settings(path)
    for line in found.report:
        print(f"{path.name}: {line.message}", file=sys.stderr)
    return found


def serve(options: argparse.Namespace) -> int:
    """Start the page and keep it running until Ctrl+C."""
    # imported here: the flags' help and mistakes in them should not wait for the web server's import
    from kohya_gui import demo, exposure, localization, paths, settings
    from kohya_gui.jobs import JobStore
    from kohya_gui.services import Services

    home = (options.jobs_dir or PROJECT).expanduser().resolve()
    chosen = _settings(options.config, home)
    words = localization.load(options.language or chosen.language or None)
    share = options.share and not options.do_not_share
    secret = password.choose(options.username, options.password)
    # a password in the environment alone is a login too
    name = options.username or (exposure.NAME if secret and not options.password else "")
    open_to = exposure.decide(options.listen, share, name, secret)
    store = JobStore(home / "jobs", allow_plugins=options.allow_plugins)
    folders = [
        *_usual_folders(home),
        *options.allow_folder,
        *(Path(name).expanduser() for name in chosen.allowed_paths),
    ]
    values: dict[str, Any] = {}
    start_name, first = "", ""
    if options.demo:
        values, start_name, first = demo.prepare(PROJECT), demo.NAME, "jobs"
        demo.start(store, values)
    with words.building():
        reach = open_to.sentence(words)
    services = Services(
        roots=paths.Roots(folders),
        jobs=store,
        words=words,
        home=home,
        remembered=settings.Remembered(store.root / ".page.json", chosen.start_folders),
        settings=chosen,
        reach=reach,
        exposed=not open_to.local,
        headless=options.headless,
        start=values,
        start_name=start_name,
        first_tab=first,
    )
    return _run(options, services, open_to)


def _shared(url: str | None) -> str:
    if not url:
        return "The shared link could not be made (see above); the page goes on without it."
    return f"Shared as {url}: everybody who has this link and the login can train, read and write as you can."


def _run(options: argparse.Namespace, services: "Services", open_to: "Exposure") -> int:
    with frozen.quick_start():
        from kohya_gui import app

        page = app.build(services)
        url = page.launch(
            open_to,
            port=options.server_port,
            inbrowser=options.inbrowser,
            root_path=options.root_path,
            debug=options.debug,
        )
    print(f"The page is at {url}", flush=True)
    if open_to.share:
        print(_shared(page.blocks.share_url), flush=True)
    print(open_to.sentence(services.words), flush=True)
    if open_to.auth and open_to.generated:
        print(f"Log in as {open_to.auth[0]} with the password {open_to.auth[1]}", flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        page.close()
        print("The page has ended; running trainings go on.", flush=True)
    return 0
