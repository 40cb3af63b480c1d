#!/usr/bin/env bash
# Set-up (see setup_env.sh), lint, then all tests. Arguments go on to pytest:
#     bash scripts/test.sh                      everything
#     bash scripts/test.sh tests/model -k glm   a part
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup_env.sh

# One thread a process: the tests run several processes side by side, and small tensors gain nothing from threads.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
if ! command -v nvidia-smi >/dev/null 2>&1; then
    export DS_ACCELERATOR="${DS_ACCELERATOR:-cpu}"
fi

"$PYTHON" -m ruff check .
exec "$PYTHON" -m pytest "$@"
