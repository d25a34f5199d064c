#!/usr/bin/env bash
# The whole gate, here and in CI: set-up, lint, build with warnings as errors, tests, the tests
# again under sanitizers, and the fuzz targets for a short while. Ends with "N passed, N failed".
#
#   scripts/check.sh            everything
#   scripts/check.sh --quick    lint and the tests of the release build
#
# Logs of the steps are kept in build/check-logs. FUZZ_SECONDS (30) is per fuzz target.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
readonly LOGS=build/check-logs
readonly FUZZ_SECONDS="${FUZZ_SECONDS:-30}"
readonly JOBS="$(nproc)"
# What runs 20 times slower under ThreadSanitizer and shows it nothing: who shares what is the same for
# every format and instruction set, and a device is one thread's, wherever it fails.
readonly WITHOUT_THREADS='/(Matmul|Dequantise|Attention|Golden)\.|AcrossInstructionSets|WhateverTheDeviceDoes'
readonly SOURCE_FOLDERS='src io cache gpu cpu tests bench'

export ASAN_OPTIONS=detect_leaks=1:strict_string_checks=1:detect_stack_use_after_return=1
export UBSAN_OPTIONS=print_stacktrace=1
export TSAN_OPTIONS=second_deadlock_stack=1

passed=0
failed=0
skipped=0
summary=''

say() {
  printf '%s\n' "$*"
}

# note <name> <result> <seconds> <what>
note() {
  summary+="$(printf '%-24s %-8s %5s s  %s' "$@")"$'\n'
}

# step <name> <command...>: one thing that passes or fails. Its output goes to a log, whose end is
# shown if it fails. ctest's tests are counted one by one.
step() {
  local name="$1" log="$LOGS/${1// /-}.log" started=$SECONDS result=passed counts
  shift
  say "== $name"
  "$@" >"$log" 2>&1 || result=failed
  counts="$(sed -nE 's/^[0-9]+% tests passed, ([0-9]+) .* out of ([0-9]+)$/\1 \2/p' "$log")"
  if [[ -n "$counts" ]]; then
    local tests_failed="${counts% *}" tests="${counts#* }"
    passed=$((passed + tests - tests_failed))
    failed=$((failed + tests_failed))
    counts="$tests tests"
  else
    [[ $result == passed ]] && passed=$((passed + 1)) || failed=$((failed + 1))
  fi
  note "$name" "$result" $((SECONDS - started)) "$counts"
  if [[ $result == failed ]]; then
    tail -n 60 "$log"
    say "== $name failed; the whole log: $log"
    return 1
  fi
}

skip() {
  say "== $1: skipped, $2"
  skipped=$((skipped + 1))
  note "$1" skipped 0 "$2"
}

find_sources() {
  find $SOURCE_FOLDERS -path tests/data -prune -o \
    \( -name '*.h' -o -name '*.cc' -o -name '*.cu' -o -name '*.cuh' \) -print0
}

# Versions of clang-format differ in their opinions: this one's count.
clang_format_14() {
  local name
  for name in clang-format-14 clang-format; do
    if command -v "$name" >/dev/null && "$name" --version | grep -q 'version 14\.'; then
      echo "$name"
      return
    fi
  done
}

check_format() {
  find_sources | xargs -0 -n 16 -P "$JOBS" "$1" --dry-run -Werror
}

build() {
  local preset="$1"
  shift
  cmake --preset "$preset" && cmake --build --preset "$preset" "$@"
}

# The sanitizers want their shadow where address randomisation may put something else.
fixed_addresses() {
  if setarch -R true 2>/dev/null; then
    setarch -R "$@"
  else
    "$@"
  fi
}

run_tests() {
  local preset="$1"
  shift
  fixed_addresses ctest --test-dir "build/$preset" --output-on-failure --no-tests=error \
    -j "$JOBS" "$@"
}

# New inputs go to the build folder; only what a person picks is committed.
fuzz() {
  local name="$1" found="build/fuzz/found/$1"
  mkdir -p "$found"
  local -a options=(-max_total_time="$FUZZ_SECONDS" -timeout=10 -rss_limit_mb=2048
                    -print_final_stats=1 -artifact_prefix="build/fuzz/found/$name-")
  [[ -e "tests/fuzz/$name.dict" ]] && options+=(-dict="tests/fuzz/$name.dict")
  local -a folders=("$found")
  [[ -d "tests/fuzz/corpus/$name" ]] && folders+=("tests/fuzz/corpus/$name")
  fixed_addresses "build/fuzz/tests/fuzz/offstage_${name}_fuzz" "${options[@]}" "${folders[@]}"
}

check_lint() {
  local formatter
  formatter="$(clang_format_14)"
  if [[ -n "$formatter" ]]; then
    step 'format' check_format "$formatter" || true
  else
    skip 'format' 'clang-format 14 is not here'
  fi
  step 'lint rules' python3 scripts/lint_test.py || true
  step 'lint' python3 scripts/lint.py || true
}

check_release() {
  step 'release build' build check || return 0
  step 'release tests' run_tests check || true
}

check_sanitizers() {
  if step 'asan build' build asan; then
    step 'asan tests' run_tests asan || true
  fi
  if step 'tsan build' build tsan; then
    step 'tsan tests' run_tests tsan --exclude-regex "$WITHOUT_THREADS" || true
  fi
}

check_fuzz() {
  local source name
  local -a names=()
  for source in tests/fuzz/*_fuzz.cc; do
    names+=("$(basename "$source" .cc)")
  done
  step 'fuzz build' build fuzz --target "${names[@]/#/offstage_}" || return 0
  for name in "${names[@]}"; do
    step "fuzz ${name%_fuzz}" fuzz "${name%_fuzz}" || true
  done
}

main() {
  local quick=0
  case "${1:-}" in
    '') ;;
    --quick) quick=1 ;;
    *) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2 ;;
  esac
  say '== set-up'
  scripts/setup.sh
  mkdir -p "$LOGS"
  check_lint
  check_release
  if [[ $quick == 0 ]]; then
    check_sanitizers
    check_fuzz
  fi
  say
  printf '%s' "$summary"
  say "total $((SECONDS / 60)) min $((SECONDS % 60)) s, steps skipped: $skipped"
  say "$passed passed, $failed failed"
  [[ $failed == 0 ]]
}

main "$@"
