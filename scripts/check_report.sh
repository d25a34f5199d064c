#!/usr/bin/env bash
# Opens a report in headless Chromium: all its charts are drawn, nothing went wrong, no request left
# the machine. Leaves light.png, dark.png and paper.pdf for a person to look at.
#
#   scripts/check_report.sh                       makes a report of the demo model first, and one
#                                                 of a plan
#   scripts/check_report.sh REPORT.html [FOLDER]  pictures go to FOLDER (build/report)
set -euo pipefail

readonly ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
readonly CHARTS_MIN=6
readonly PLAN_CHARTS=3
readonly WINDOW=1280,4200

say() {
  printf 'report: %s\n' "$*"
}

die() {
  printf 'report: %s\n' "$*" >&2
  exit 1
}

browser() {
  local name
  for name in chromium chromium-browser google-chrome google-chrome-stable; do
    command -v "$name" && return
  done
  return 1
}

offstage() {
  local preset
  for preset in check release; do
    [[ -x "$ROOT/build/$preset/offstage" ]] && { echo "$ROOT/build/$preset/offstage"; return; }
  done
  die 'no build/check/offstage nor build/release/offstage: build first'
}

# open_page <argument...>: no host but this file is known to the browser.
open_page() {
  "$BROWSER" --headless --no-sandbox --disable-gpu --hide-scrollbars --no-first-run \
    --user-data-dir="$PROFILE" --host-resolver-rules='MAP * ~NOTFOUND' --window-size="$WINDOW" \
    --virtual-time-budget=10000 --enable-logging=stderr "$@" 2>>"$PROFILE.log"
}

# check_page <file> <folder> <name of its pictures> <least number of charts>
check_page() {
  local report="$1" folder="$2" name="$3" charts_min="$4" page charts
  page="$(open_page --dump-dom "file://$report")"
  charts="$(sed -nE 's/.*<html[^>]* data-charts="([0-9]+)".*/\1/p' <<<"$page" | head -n 1)"
  if grep -q '<html[^>]* data-problem=' <<<"$page"; then
    die "$report: $(sed -nE 's/.*data-problem="([^"]*)".*/\1/p' <<<"$page" | head -n 1)"
  fi
  [[ -n "$charts" ]] || die "$report: its script didn't run to its end"
  ((charts >= charts_min)) || die "$report: $charts charts, expected $charts_min or more"
  if grep -E 'CONSOLE.*(Uncaught|Refused|ERR_)' "$PROFILE.log"; then
    die "$report: the browser complained"
  fi
  open_page --screenshot="$folder/${name}light.png" "file://$report"
  open_page --blink-settings=preferredColorScheme=0 --screenshot="$folder/${name}dark.png" \
    "file://$report"
  open_page --print-to-pdf="$folder/${name}paper.pdf" "file://$report"
  say "$charts charts drawn; look at $folder/$name{light.png,dark.png,paper.pdf}"
}

# A machine that nobody measured, so that a plan has curves everywhere.
write_profile() {
  cat >"$1" <<'JSON'
{"schema": "offstage.profile/1", "machine": "made up", "date": "2026-01-01T00:00:00Z",
 "ram": {"bytes": 17179869184, "read_bytes_per_s": 25e9},
 "cpu": {"threads": 2, "hash_bytes_per_s": 6e9, "dispatch_ns": 3000, "event_ns": 9000,
  "token_ns": 60000, "wake_ns": 40000, "slowdown_beside_reads": 1.15,
  "kernels": [{"type": "Q4_K", "decode_bytes_per_s": 21e9, "prefill_params_per_s": 45e9}]},
 "drives": [{"name": "nvme0n1", "bytes_per_s": 1.3e9, "latency_ns": 180000, "jitter_ns": 90000,
  "channels": 32, "block_bytes": 1048576, "depth": 16, "slowest_second": 0, "read_p99_ns": 0}]}
JSON
}

main() {
  if [[ "${1:-}" == -h || "${1:-}" == --help ]]; then
    sed -n '2,7s/^# \{0,1\}//p' "$0"
    return
  fi
  if ! BROWSER="$(browser)"; then
    say 'skipped: no chromium here (apt-get install chromium)'
    return
  fi
  readonly BROWSER
  local folder="${2:-$ROOT/build/report}" report="${1:-}"
  mkdir -p "$folder"
  PROFILE="$(mktemp -d)"
  readonly PROFILE
  trap 'rm -rf "$PROFILE" "$PROFILE.log"' EXIT
  if [[ -n "$report" ]]; then
    check_page "$(realpath "$report")" "$folder" '' 1
    return
  fi
  "$(offstage)" run -p 'static int parse(const char *' -n 400 -c 512 --temp 0 --ignore-eos --ram 56M \
    --no-preload --report "$folder/report.html" >/dev/null
  check_page "$folder/report.html" "$folder" '' "$CHARTS_MIN"
  write_profile "$folder/profile.json"
  "$(offstage)" plan --shape olmoe-1b-7b --profile "$folder/profile.json" --add-drive 1 -n 64 \
    --report "$folder/plan.html" >/dev/null
  check_page "$folder/plan.html" "$folder" plan- "$PLAN_CHARTS"
}

main "$@"
