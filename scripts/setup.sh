# Sourced by the other scripts: goes to the project's root and makes .venv with the extras in $1 if
# that has not been done for this pyproject.toml. PYTHON names the interpreter to start from, 3.11
# or newer.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

mark=.venv/.installed$1
if [ ! -x .venv/bin/python ]; then
  "${PYTHON:-python3}" -c 'import sys; sys.exit("Python 3.11 or newer is needed; set PYTHON=…") if sys.version_info < (3, 11) else 0'
  "${PYTHON:-python3}" -m venv .venv
fi
if [ ! -e "$mark" ] || [ pyproject.toml -nt "$mark" ]; then
  echo "installing into .venv (torch is large: some minutes the first time)"
  .venv/bin/python -m pip install --quiet --editable ".$1"
  touch "$mark"
fi
