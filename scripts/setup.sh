# Sourced by quickstart.sh and test.sh: make .venv beside this folder, once per (pyproject, constraints, Python).
#
# Set PYTHON to choose an interpreter, TORCH_INDEX_URL to choose where torch comes from. torch is installed first and
# by its exact version, so that whichever build its index gives (CPU or CUDA) is the one that the rest is resolved
# against.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="$ROOT/.venv"
PYTHON="${PYTHON:-python3}"
unset PYTHONHOME PYTHONPATH

if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "fe_posttrain needs Python 3.11 or newer; $("$PYTHON" --version) is $(command -v "$PYTHON"). Set PYTHON." >&2
    exit 1
fi
stamp="$(cat "$ROOT/pyproject.toml" "$ROOT/constraints.txt" <("$PYTHON" -VV) | "$PYTHON" -c \
    'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')"
if [ "$(cat "$VENV/.stamp" 2>/dev/null || true)" != "$stamp" ]; then
    echo "Installing into $VENV (once; a few minutes) ..." >&2
    "$PYTHON" -m venv --clear "$VENV"
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check \
        ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} "$(grep '^torch==' "$ROOT/constraints.txt")"
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check \
        --constraint "$ROOT/constraints.txt" --editable "$ROOT[dev]"
    echo "$stamp" > "$VENV/.stamp"
fi
