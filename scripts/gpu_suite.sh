#!/usr/bin/env bash
# What a machine with a card is asked, in one go: out of a folder that bundle.sh made, or of a
# checkout with a release build. Leaves one folder of results and ends with "N passed, N failed".
#
#   gpu_suite.sh [RESULTS]    default: gpu-results beside this script
#
# Steps: the card's facts, the kernels against the CPU's bits, the same under compute-sanitizer
# (where it is installed), the speed of the experts' matrices, the demo model. What finds no card is
# skipped, and not counted as passed.
set -euo pipefail

readonly SECONDS_MAX="${SECONDS_MAX:-480}"  # for all steps together

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
passed=0
failed=0
skipped=0

say() {
  printf '%s\n' "$*"
}

# A program of the bundle, or of the release build.
find_program() {
  local place
  for place in "$here/bin" "$here/../build/release" "$here/../build/release/bench" \
    "$here/../build/release/tests/gpu_shim"; do
    if [[ -x "$place/$1" ]]; then
      echo "$place/$1"
      return
    fi
  done
}

# step <name> <command...>: its output goes to RESULTS/<name>.log.
step() {
  local name="$1" started=$SECONDS left=$((SECONDS_MAX - SECONDS)) result=passed
  shift
  if [[ $left -le 0 ]]; then
    skip "$name" "no time left of $SECONDS_MAX s"
    return
  fi
  timeout "$left" "$@" >"$results/$name.log" 2>&1 || result=failed
  local why
  why="$(grep -m1 '^CUDA: ' "$results/$name.log" || true)"
  if [[ $result == passed && -n "$why" ]]; then
    skip "$name" "$why"
    return
  fi
  if [[ $result == passed ]]; then passed=$((passed + 1)); else failed=$((failed + 1)); fi
  say "$name: $result, $((SECONDS - started)) s" | tee -a "$results/summary.txt"
  [[ $result == passed ]] || tail -n 20 "$results/$name.log"
}

skip() {
  skipped=$((skipped + 1))
  say "$1: skipped, $2" | tee -a "$results/summary.txt"
}

# The demo model's text with experts on the card, copied there call by call, and without: the same. Without a card the run says
# why, in a line that step() knows.
# shellcheck disable=SC2016  # expanded by the inner shell
readonly SAME_TEXT='set -e
  flags=(run -p "And it came to pass" -n 64 -c 256 --temp 0)
  "$1" "${flags[@]}" >"$2/text-cpu.txt"
  "$1" "${flags[@]}" --vram 256M --promote always >"$2/text-vram.txt" 2>"$2/vram.txt"
  cat "$2/vram.txt"
  grep -o "CUDA: .*" "$2/vram.txt" || true
  cmp "$2/text-cpu.txt" "$2/text-vram.txt"
  "$1" "${flags[@]}" --vram 256M --promote off --placement copy >"$2/text-copied.txt" 2>"$2/copied.txt"
  cmp "$2/text-cpu.txt" "$2/text-copied.txt"'

main() {
  local tests bench offstage
  results="${1:-$here/gpu-results}"
  mkdir -p "$results"
  : >"$results/summary.txt"
  tests="$(find_program offstage_gpu_card_tests)"
  offstage="$(find_program offstage)"
  if command -v nvidia-smi >/dev/null; then
    step facts nvidia-smi -q
  else
    skip facts 'nvidia-smi is not here'
  fi
  if [[ -z "$tests" ]]; then
    skip kernels 'offstage_gpu_card_tests is not here: built without CUDA'
  else
    step kernels "$tests"
    if command -v compute-sanitizer >/dev/null; then
      step memcheck compute-sanitizer --error-exitcode 1 "$tests"
      step racecheck compute-sanitizer --tool racecheck --error-exitcode 1 "$tests"
    else
      skip memcheck 'compute-sanitizer is not here'
    fi
  fi
  bench="$(find_program gpu_matvec_bench)"
  if [[ -n "$bench" ]]; then
    step matvec-bench "$bench"
  else
    skip matvec-bench 'gpu_matvec_bench is not here: built without CUDA'
  fi
  if [[ -n "$offstage" ]]; then
    step demo "$offstage" run -p 'And it came to pass' -n 32 -c 256 --temp 0
    step experts-in-vram bash -c "$SAME_TEXT" same-text "$offstage" "$results"
  else
    skip demo 'offstage is not here'
  fi
  say "$passed passed, $failed failed, $skipped skipped" | tee -a "$results/summary.txt"
  [[ $failed == 0 ]]
}

main "$@"
