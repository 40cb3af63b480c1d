# Sourced by the other scripts: leaves a Python with all requirements in $PYTHON, and its folder first in PATH.
#
#   (nothing set)      makes .venv in the repository if there is none and installs requirements.txt into it;
#                      later calls do nothing unless requirements.txt has changed
#   PYTHON=/path/to/python   uses that interpreter as it is: nothing is created or installed. For an environment
#                      that has everything already:  PYTHON="$(command -v python)" bash scripts/test.sh
#
# Needs Python 3.11 or newer and pip's registry; no compiler, no GPU.

GLMKD_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

_glmkd_is_new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

_glmkd_base_python() {
    local candidate
    for candidate in python3 python3.11 python3.12 python3.13 python; do
        if _glmkd_is_new_enough "$candidate"; then
            command -v "$candidate"
            return 0
        fi
    done
    echo "Python 3.11 or newer is needed and none was found; on Debian or Ubuntu: apt-get install python3 python3-venv" >&2
    return 1
}

_glmkd_make_venv() {
    local base
    base="$(_glmkd_base_python)" || return 1
    echo "making .venv with $base ($("$base" --version))"
    if [ -n "${VIRTUAL_ENV:-}" ]; then
        echo "  (the active environment $VIRTUAL_ENV is left alone; to reuse it: PYTHON=\"\$(command -v python)\" bash $0)"
    fi
    if ! "$base" -m venv "$1" >/dev/null; then
        rm -rf "$1"
        # Debian keeps ensurepip in a package of its own; a pip outside can fill an environment without one.
        if "$base" -m pip --version >/dev/null 2>&1 && "$base" -m venv --without-pip "$1" &&
            "$base" -m pip --python "$1/bin/python" install --quiet pip; then
            return 0
        fi
        rm -rf "$1"
        echo "cannot make a virtual environment with $base; on Debian or Ubuntu: apt-get install python3-venv" >&2
        return 1
    fi
}

_glmkd_setup() {
    local venv="$GLMKD_ROOT/.venv" stamp="$GLMKD_ROOT/.venv/requirements.installed"
    if [ -n "${PYTHON:-}" ]; then
        PYTHON="$(command -v "$PYTHON")" || { echo "PYTHON does not name a program" >&2; return 1; }
        _glmkd_is_new_enough "$PYTHON" || { echo "PYTHON=$PYTHON is older than 3.11" >&2; return 1; }
    else
        if [ ! -x "$venv/bin/python" ]; then
            rm -rf "$venv"
            _glmkd_make_venv "$venv" || return 1
        fi
        PYTHON="$venv/bin/python"
        if ! cmp -s "$GLMKD_ROOT/requirements.txt" "$stamp"; then
            echo "installing requirements.txt into .venv (some minutes the first time)"
            "$PYTHON" -m pip install --quiet --disable-pip-version-check -r "$GLMKD_ROOT/requirements.txt" || {
                echo "pip could not install requirements.txt; see its message above" >&2
                return 1
            }
            cp "$GLMKD_ROOT/requirements.txt" "$stamp"
        fi
    fi
    export PYTHON
    # The launchers (deepspeed, torchrun) stand beside the interpreter.
    export PATH="$(dirname "$PYTHON"):$PATH"
}

_glmkd_setup || exit 1
