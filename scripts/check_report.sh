#!/usr/bin/env bash
# Opens a report in headless Chromium: all its charts are drawn, nothing went wrong, no request left
# the machine. Leaves light.png, dark.png and paper.pdf for a person to look at.
#
#   scripts/check_report.sh                       makes a report of the demo model first
#   scripts/check_report.sh REPORT.html [FOLDER]  pictures go to FOLDER (build/report)
set -euo pipefail

readonly ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
readonly CHARTS_MIN=6
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

main() {
  if [[ "${1:-}" == -h || "${1:-}" == --help ]]; then
    sed -n '2,6s/^# \{0,1\}//p' "$0"
    return
  fi
  if ! BROWSER="$(browser)"; then
    say 'skipped: no chromium here (apt-get install chromium)'
    return
  fi
  readonly BROWSER
  local folder="${2:-$ROOT/build/report}" report="${1:-}" page charts
  mkdir -p "$folder"
  if [[ -z "$report" ]]; then
    report="$folder/report.html"
    "$(offstage)" run -p 'static int parse(const char *' -n 400 -c 512 --temp 0 --ignore-eos --ram 56M \
      --no-preload --report "$report" >/dev/null
  fi
  report="$(realpath "$report")"
  PROFILE="$(mktemp -d)"
  readonly PROFILE
  trap 'rm -rf "$PROFILE" "$PROFILE.log"' EXIT

  page="$(open_page --dump-dom "file://$report")"
  charts="$(sed -nE 's/.*<html[^>]* data-charts="([0-9]+)".*/\1/p' <<<"$page" | head -n 1)"
  if grep -q '<html[^>]* data-problem=' <<<"$page"; then
    die "$report: $(sed -nE 's/.*data-problem="([^"]*)".*/\1/p' <<<"$page" | head -n 1)"
  fi
  [[ -n "$charts" ]] || die "$report: its script didn't run to its end"
  ((charts >= CHARTS_MIN)) || die "$report: $charts charts, expected $CHARTS_MIN or more"
  if grep -E 'CONSOLE.*(Uncaught|Refused|ERR_)' "$PROFILE.log"; then
    die "$report: the browser complained"
  fi
  open_page --screenshot="$folder/light.png" "file://$report"
  open_page --blink-settings=preferredColorScheme=0 --screenshot="$folder/dark.png" "file://$report"
  open_page --print-to-pdf="$folder/paper.pdf" "file://$report"
  say "$charts charts drawn; look at $folder/{light.png,dark.png,paper.pdf}"
}

main "$@"
