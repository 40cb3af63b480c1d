#!/usr/bin/env bash
# Set-up (see setup_env.sh), then the tasks of SuperGLUE with small models: a teacher and a student that is distilled
# from it, each fine-tuned by one command, and a table. From any folder, on the CPU. Arguments (--help has the rest):
#     bash scripts/superglue.sh --world               the tasks of the generated world: nothing is needed
#     bash scripts/superglue.sh --world copa rte      some
#     bash scripts/superglue.sh --data superglue --text corpus.jsonl --vocab vocab.txt      real files
set -euo pipefail
caller="$PWD"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup_env.sh

exec "$PYTHON" -m scripts.superglue --from "$caller" "$@"
