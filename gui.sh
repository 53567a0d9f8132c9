#!/usr/bin/env bash
# Starts the page; sets the environment up first where that is missing or unfinished.
#   ./gui.sh             the page on http://127.0.0.1:7860
#   ./gui.sh --demo      the same with a small built-in project that trains at once
#   ./gui.sh --help      all flags
set -eu
here="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
cd -- "$here"

python="$here/venv/bin/python"
if [ ! -x "$python" ] || ! "$python" -m kohya_gui.installer --is-current; then
    "$here/setup.sh"
fi
export PYTHONUTF8=1
exec "$python" "$here/kohya_gui.py" "$@"
