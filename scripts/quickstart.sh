#!/usr/bin/env bash
# From a fresh clone to a Mixture-of-Experts model that speaks from the drive: set-up, build, a
# small model, and a run under a memory budget smaller than the model's experts.
#
#   scripts/quickstart.sh [options of `offstage run` in place of -n 64 --temp 0 -c 512 --ram 96M]
set -euo pipefail

readonly SHAPE=small-qwen3moe
readonly QUANT=Q4_K
readonly OPTIONS='-n 64 --temp 0 -c 512 --ram 96M'
readonly PROMPT='Once upon a time'

say() {
  printf '\n== %s\n' "$*"
}

# A virtual environment's python3 may lack numpy where the system's has it.
python_with_numpy() {
  local python
  for python in python3 /usr/bin/python3; do
    "$python" -c 'import numpy' 2>/dev/null && { echo "$python"; return; }
  done
  echo "quickstart: no python3 with numpy" >&2
  exit 1
}

main() {
  local root python
  local -a options
  root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
  cd "$root"

  say "set-up"
  scripts/setup.sh --run-only

  say "build"
  cmake --preset release
  cmake --build --preset release --target offstage

  local model="build/models/$SHAPE-${QUANT,,}.gguf"
  say "model: $model"
  if [[ ! -e "$model" ]]; then
    python="$(python_with_numpy)"
    mkdir -p "$(dirname "$model")"
    "$python" scripts/make_model.py --shape "$SHAPE" --quant "$QUANT" --out "$model.part"
    mv "$model.part" "$model"
  fi
  cat <<TEXT
Its weights are random numbers: what it says is gibberish by design. It is here to show the
machinery, which is the same for a real model (offstage run -m YOUR.gguf -p ... --ram 8G).
TEXT

  read -r -a options <<<"$OPTIONS"
  [[ $# == 0 ]] || options=("$@")
  local -a command=(build/release/offstage run -m "$model" -p "$PROMPT" "${options[@]}")
  say "run under a budget smaller than the experts"
  printf '$'
  printf ' %q' "${command[@]}"
  printf '\n\n'
  "${command[@]}"

  say "what to look at"
  cat <<TEXT
budget   what --ram allows the whole process, and the least it could run with
experts  (above the text) how many of the model's experts fit into the slots that are left
experts  (below it) how many calls found their expert in RAM, and what was read from the drive
time     where the wall time of the tokens went, by cause
memory   the peak of the process against the budget
The file has $(($(stat -c %s "$model") >> 20)) MiB. Try -n 64 --temp 0 -c 512 with --ram 64M or
--ram 256M: the text stays the same. With --ram 1M it is refused.
TEXT
}

main "$@"
