#!/usr/bin/env bash
# Set-up (see setup_env.sh), then the main job on a generated world: text -> teacher -> distilled student -> score.
# Some minutes on two CPU cores, offline after the installation. Arguments:
#     bash scripts/quickstart.sh             one seed
#     bash scripts/quickstart.sh --seeds 3   three students of each kind: mean and spread
#     bash scripts/quickstart.sh --fresh     forget an earlier run (otherwise finished steps are kept)
#     bash scripts/quickstart.sh --recipe glmd-al   instead: what half of the vocabulary and a factorised embedding cost
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup_env.sh

exec "$PYTHON" -m scripts.quickstart "$@"
