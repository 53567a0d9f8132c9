#!/usr/bin/env bash
# Makes what the tests need and runs them.
#   ./tests/run.sh            everything
#   ./tests/run.sh --quick    the everyday part: no slow tests
#   ./tests/run.sh [--quick] tests/schema -k name     further words go to pytest
set -eu
root="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"
cd -- "$root"

quick=0
if [ "${1:-}" = "--quick" ]; then quick=1; shift; fi

python="$root/venv/bin/python"
if [ ! -x "$python" ] || ! "$python" -m kohya_gui.installer --is-current; then
    "$root/setup.sh"
fi
mark="$root/venv/.tests-done"
if ! cmp -s tests/requirements.txt "$mark"; then
    "$python" -m pip --disable-pip-version-check install -q -r tests/requirements.txt
    cp tests/requirements.txt "$mark"
fi
if ! command -v chromium >/dev/null 2>&1 && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    apt-get update -q && apt-get install -y -q --no-install-recommends chromium
fi

workers="$(nproc 2>/dev/null || echo 2)"  # before the next line: nproc heeds OMP_NUM_THREADS
# One thread a worker: two workers on two cores; more threads only fight.
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false PYTHONUTF8=1 HF_HUB_OFFLINE=1
if [ "$quick" = 1 ]; then
    exec "$python" -m pytest -n "$workers" --dist worksteal -m "not slow" "$@"
fi
exec "$python" -m pytest -n "$workers" --dist worksteal "$@"
