#!/usr/bin/env bash
# From a fresh clone to a Mixture-of-Experts model that speaks from the drive: set-up, build, and
# the demo model on three kinds of text, under a memory budget that half of its experts fit.
#
#   scripts/quickstart.sh [options of `offstage run` in place of those below]
set -euo pipefail

readonly OPTIONS='-n 48 -c 512 --temp 0.7 -s 1 --ram 52M'
readonly PROMPTS=('And it came to pass' 'def __init__(self' '#include <')

say() {
  printf '\n== %s\n' "$*"
}

main() {
  local root prompt
  local -a options
  root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
  cd "$root"

  say "set-up"
  scripts/setup.sh --run-only

  say "build"
  cmake --preset release
  cmake --build --preset release --target offstage

  cat <<TEXT

The demo (src/app/demo/CARD.md) is a small model, trained on five kinds of text for a short while:
look at the machinery, not at the sense. A model of yours: offstage run -m YOUR.gguf -p ... --ram 8G
TEXT

  read -r -a options <<<"$OPTIONS"
  [[ $# == 0 ]] || options=("$@")
  for prompt in "${PROMPTS[@]}"; do
    local -a command=(build/release/offstage run -p "$prompt" "${options[@]}")
    say "run under a budget smaller than the experts"
    printf '$'
    printf ' %q' "${command[@]}"
    printf '\n\n'
    "${command[@]}"
  done

  say "what to look at"
  cat <<TEXT
budget   what --ram allows the whole process, and the least it could run with
experts  (above the text) how many of the model's experts fit into the slots that are left
experts  (below it) how many calls found their expert in RAM, and what was read from the drive
time     where the wall time of the tokens went, by cause
memory   the peak of the process against the budget
Try $OPTIONS with --ram 46M or --ram 80M: the text stays the same. With --ram 1M it is refused.
TEXT
}

main "$@"
