#!/usr/bin/env bash
# Makes or repairs the environment in venv/ beside this file. Safe to run again at any time.
#   ./setup.sh [--skip-space-check] [--recreate]
set -eu
here="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
cd -- "$here"

for candidate in "${PYTHON:-}" python3.13 python3.12 python3.11 python3 python; do
    [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 || continue
    if "$candidate" -c 'import sys; raise SystemExit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
        exec "$candidate" -m kohya_gui.installer "$@"
    fi
done
echo "No Python 3.11, 3.12 or 3.13 was found. Install one (Debian or Ubuntu: apt install python3 python3-venv; macOS: brew install python@3.12) and run ./setup.sh again, or name it: PYTHON=/path/to/python3.12 ./setup.sh" >&2
exit 2
