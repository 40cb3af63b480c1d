#!/usr/bin/env bash
# Set-up (see setup_env.sh), then every published command with --fast-dev-run by the deepspeed launcher on the CPU:
# some at a time, a table at the end, exit code 1 if one fails. From any folder. Arguments (--help has the rest):
#     bash scripts/check_commands.sh                          all of tests/seed_commands.json
#     bash scripts/check_commands.sh --method KD --id pd-1    some
#     bash scripts/check_commands.sh --commands FILE.json     another list
#     bash scripts/check_commands.sh --docs                   the commands of our pages that are not in the list
#     bash scripts/check_commands.sh --markdown FILE.md       the table as Markdown, too
set -euo pipefail
caller="$PWD"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup_env.sh

exec "$PYTHON" -m tests.run_commands --from "$caller" "$@"
