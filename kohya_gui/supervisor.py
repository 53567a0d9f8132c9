"""The parent of one training job: starts it, waits for it, writes down how it ended. Standard library only.

Only a parent can read an exit code, and a training must outlive the page, so this small process stands between them,
in a session of its own. It is started as `python -P supervisor.py JOB_FOLDER` and needs from there `spec.json` with
"argv" (a list, run without a shell) and optionally "cwd". It writes `supervisor.json` (process ids with start times),
`console.log` and, at the end, `exit.json`; it obeys `kill.json` ({"grace": seconds}).
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SPEC, STARTED, CONSOLE, EXIT, KILL = "spec.json", "supervisor.json", "console.log", "exit.json", "kill.json"
EVENTS, STOP = "events.jsonl", "control/stop"
# tokens that a program may have from the page's own environment
USUAL_SECRETS = ("HF_TOKEN", "WANDB_API_KEY")
_SHORTEST_SECRET = 8
_PART = 4_000_000
MARKER = "KOHYA_GUI_JOB"
WINDOWS = os.name == "nt"
POLL_SECONDS = 0.2
DEFAULT_GRACE = 10.0


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file that is complete or absent: to a temporary name, flushed, then renamed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=False, indent=1)
        file.flush()
        os.fsync(file.fileno())
    _replace(temporary, path)


def _replace(source: Path, target: Path) -> None:
    """Rename over a file; on Windows wait a moment for a reader that has the old one open."""
    for _ in range(50 if WINDOWS else 0):
        try:
            os.replace(source, target)
            return
        except PermissionError:
            time.sleep(0.02)
    os.replace(source, target)


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None where the file is missing, torn or no object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _parents() -> dict[int, int]:
    """Every process id with the id of its parent."""
    table: dict[int, int] = {}
    if Path("/proc/self/stat").exists():
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    # the name in brackets may hold blanks and brackets itself: read behind the last one
                    table[int(entry)] = int(Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()[1])
                except (OSError, IndexError, ValueError):
                    continue
        return table
    listing = subprocess.run(["ps", "-axo", "pid=,ppid="], capture_output=True, text=True, check=False).stdout
    for line in listing.splitlines():
        pid, _, parent = line.strip().partition(" ")
        table[int(pid)] = int(parent)
    return table


def _marked(marker: str) -> set[int]:
    """Processes whose environment carries this job's marker, wherever they hang in the tree (Linux)."""
    wanted = f"{MARKER}={marker}".encode()
    found = set()
    for entry in os.listdir("/proc") if Path("/proc/self/environ").exists() else ():
        if entry.isdigit() and int(entry) != os.getpid():
            try:
                if wanted in Path("/proc", entry, "environ").read_bytes().split(b"\0"):
                    found.add(int(entry))
            except OSError:
                continue
    return found


def _family(root: int, marker: str) -> set[int]:
    """The process, everything below it, and strays of the same job that lost their parent."""
    parents = _parents()
    members = {root} | _marked(marker)
    while added := {pid for pid, parent in parents.items() if parent in members} - members:
        members |= added
    return {pid for pid in members if pid in parents and pid != os.getpid()}


def _signal(pids: set[int], number: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            continue


def kill_tree(process: "subprocess.Popen[bytes]", marker: str, grace: float) -> None:
    """Ask the whole tree to end, wait up to `grace` seconds, then end what is left by force."""
    if WINDOWS:
        # a console-less child cannot be asked politely on Windows; the page has offered "stop" before
        subprocess.run(["taskkill", "/T", "/F", "/PID", str(process.pid)], capture_output=True, check=False)
        process.wait()
        return
    members = _family(process.pid, marker)
    _signal(members, signal.SIGTERM)
    until = time.monotonic() + grace
    while time.monotonic() < until:
        process.poll()
        members = _family(process.pid, marker)
        if process.returncode is not None and members <= {process.pid}:
            return
        time.sleep(POLL_SECONDS)
    _signal(_family(process.pid, marker), signal.SIGKILL)
    process.wait()
    sweep(marker)


def sweep(marker: str) -> None:
    """End processes of this job that outlived its launcher: they would keep the GPU."""
    if not WINDOWS:
        _signal(_marked(marker), signal.SIGKILL)


class Stars:
    """Puts stars over secrets that a program writes into its console or events: these are what people send to others.

    The programs only ever append, so bytes that are there can be overwritten in place.
    """

    def __init__(self, folder: Path, names: list[str]) -> None:
        values = {os.environ.get(name, "").encode() for name in (*USUAL_SECRETS, *names)}
        self._secrets = [value for value in values if len(value) >= _SHORTEST_SECRET]
        self._looked = {folder / CONSOLE: 0, folder / EVENTS: 0}

    def put(self) -> None:
        """Look at what was written since the last time."""
        for path in self._looked if self._secrets else ():
            try:
                self._over(path)
            except OSError:
                continue  # not there yet; or a disk that takes nothing, which is no reason to end a training

    def _over(self, path: Path) -> None:
        longest = max(map(len, self._secrets))
        with path.open("r+b") as file:
            while True:
                # one that was written half the last time begins in what was looked at
                begin = max(0, self._looked[path] - longest + 1)
                file.seek(begin)
                part = file.read(_PART)
                if begin + len(part) <= self._looked[path]:
                    return
                for secret in self._secrets:
                    at = part.find(secret)
                    while at >= 0:
                        file.seek(begin + at)
                        file.write(b"*" * len(secret))
                        at = part.find(secret, at + len(secret))
                self._looked[path] = begin + len(part)


def _start(folder: Path, argv: list[Any], spec: dict[str, Any]) -> "subprocess.Popen[bytes]":
    environment = {**os.environ, MARKER: folder.name}
    console = (folder / CONSOLE).open("ab")
    try:
        return subprocess.Popen(
            [str(part) for part in argv],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            cwd=spec.get("cwd") or None,
            env=environment,
            start_new_session=not WINDOWS,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)
            | getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
    finally:
        console.close()


def _wait(process: "subprocess.Popen[bytes]", folder: Path, stars: Stars) -> bool:
    """Wait for the end; True if it was ended on request."""
    while True:
        try:
            process.wait(timeout=POLL_SECONDS)
            return False
        except subprocess.TimeoutExpired:
            stars.put()
        if (folder / KILL).exists():
            request = read_json(folder / KILL) or {}
            grace = request.get("grace", DEFAULT_GRACE)
            kill_tree(process, folder.name, float(grace) if isinstance(grace, int | float) else DEFAULT_GRACE)
            return True


def _programs(spec: dict[str, Any] | None) -> list[tuple[str, list[Any]]]:
    """Name and argv of what runs, in order; nothing if the spec is none."""
    if spec is None or not isinstance(spec.get("argv"), list):
        return []
    try:
        before = [(str(step["name"]), list(step["argv"])) for step in spec.get("before") or []]
    except (KeyError, TypeError):
        return []
    return [*before, ("", spec["argv"])]


def _announce(folder: Path, name: str, number: int, of: int) -> None:
    """Tell the job's events that its next program begins."""
    event = {"v": 1, "t": round(time.time(), 3), "kind": "program", "name": name, "number": number, "of": of}
    with (folder / EVENTS).open("ab") as file:
        # on a line of its own, even where the program before was killed in the middle of one
        file.write(b"\n" + json.dumps(event, ensure_ascii=False).encode("utf-8") + b"\n")


def _end(folder: Path, began: float, **facts: Any) -> None:
    now = time.time()
    write_json(folder / EXIT, {**facts, "ended": now, "seconds": round(now - began, 2)})


def supervise(folder: Path) -> int:
    """Run the programs of this job one after the other and write exit.json. Returns the exit code of the last."""
    began = time.time()
    spec = read_json(folder / SPEC)
    programs = _programs(spec)
    if spec is None or not programs:
        _end(folder, began, code=None, message="The job's spec.json cannot be read.")
        return 2
    started: dict[str, Any] = {"pid": os.getpid(), "started": began, "child": None}
    write_json(folder / STARTED, started)
    code, killed, name = 0, False, ""
    stars = Stars(folder, [str(name) for name in spec.get("secrets") or []])
    for number, (name, argv) in enumerate(programs, 1):
        if number > 1 and (folder / STOP).exists():
            # asked to stop before the training began: there is nothing to save
            killed = True
            break
        if len(programs) > 1:
            _announce(folder, name, number, len(programs))
        try:
            process = _start(folder, argv, spec)
        except OSError as error:
            what = name or "The trainer"
            _end(folder, began, code=None, message=f"{what} could not be started: {error}.")
            return 1
        write_json(folder / STARTED, {**started, "child": process.pid, "child_started": time.time()})
        killed = _wait(process, folder, stars)
        sweep(folder.name)
        stars.put()
        code = process.returncode
        if killed or code != 0:
            break
    step = {"step": name} if name and code != 0 and not killed else {}
    _end(folder, began, code=code, killed=killed, **step)
    return code


def main(argv: list[str]) -> int:
    """Entry point: one argument, the job folder."""
    if len(argv) != 1 or not Path(argv[0]).is_dir():
        print("usage: supervisor.py JOB_FOLDER", file=sys.stderr)
        return 2
    # a closing terminal or Ctrl+C in the page's console is no wish to end the training
    for name in ("SIGHUP", "SIGINT"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    return 0 if supervise(Path(argv[0]).resolve()) == 0 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
