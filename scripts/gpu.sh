#!/usr/bin/env bash
# Everything that needs an NVIDIA GPU: compiling csrc for it, tests, memory and race checks, measurements; see
# docs/measuring.md.
#   scripts/gpu.sh [--parts build,tests,sanitize,measure] [--out FILE] [--resume] [--dry-run] [--help]
# Runs from a checkout without network access or installation; set PYTHON to use another interpreter.
set -eu
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
if [ -z "${PYTHON:-}" ]; then
  if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; else PYTHON=python3; fi
fi
exec "$PYTHON" -m bench.gpu "$@"
