#!/usr/bin/env bash
# One folder that runs on another Linux machine with only a driver: the program, the tests of the
# GPU, benches, the libraries they need and gpu_suite.sh. Programs find the libraries beside
# themselves ($ORIGIN/../lib); glibc is the machine's own, at least as new as this one's.
#
#   scripts/bundle.sh [FOLDER]    default: build/offstage-bundle, which is replaced
#
# CUDA_ARCHITECTURES (75) as CMake names them; OFFSTAGE_CUDA (AUTO) as in CMakeLists.txt.
set -euo pipefail

readonly MIB_MAX=50
readonly BUILD=build/bundle
readonly PROGRAMS='offstage tests/offstage_gpu_tests bench/kernels_bench'
# Those that the build may lack: without CUDA, without Boost.Context.
readonly OPTIONAL_PROGRAMS='bench/gpu_matvec_bench tests/gpu_shim/offstage_gpu_card_tests
  tests/gpu_shim/offstage_gpu_shim_tests'
# Of the machine: the loader and what must fit it.
readonly SYSTEM_LIBRARIES='^(linux-vdso|ld-linux.*|libc|libm|libpthread|libdl|librt|libresolv)\.'

say() {
  printf 'bundle: %s\n' "$*"
}

die() {
  say "$*" >&2
  exit 1
}

has_target() {
  ninja -C "$BUILD" -t query "$1" >/dev/null 2>&1
}

# DT_RPATH rather than DT_RUNPATH: it holds for the libraries of the libraries too.
build() {
  local -a targets=() program
  cmake --preset release -B "$BUILD" -DOFFSTAGE_CUDA="${OFFSTAGE_CUDA:-AUTO}" \
    -DCMAKE_CUDA_ARCHITECTURES="${CUDA_ARCHITECTURES:-75}" \
    -DCMAKE_BUILD_RPATH='$ORIGIN/../lib' -DCMAKE_EXE_LINKER_FLAGS='-Wl,--disable-new-dtags'
  for program in $PROGRAMS; do
    targets+=("$(basename "$program")")
  done
  for program in $OPTIONAL_PROGRAMS; do
    if has_target "$(basename "$program")"; then
      targets+=("$(basename "$program")")
    else
      say "$(basename "$program"): not in this build"
    fi
  done
  cmake --build "$BUILD" --target "${targets[@]}"
}

# <program>: a copy without what a debugger wants.
add_program() {
  cp "$BUILD/$1" "$folder/bin/"
  strip "$folder/bin/$(basename "$1")"
}

add_libraries() {
  local name path
  while read -r name path; do
    [[ "$name" =~ $SYSTEM_LIBRARIES ]] && continue
    [[ "$path" == /* ]] || die "$name: not found on this machine"
    cp -L --update=none "$path" "$folder/lib/$name" 2>/dev/null || cp -Ln "$path" "$folder/lib/$name"
  done < <(for program in "$folder"/bin/*; do ldd "$program"; done |
    sed -nE 's/^\s*(\S+) => (\S+).*/\1 \2/p' | sort -u)
}

main() {
  cd "$(dirname "${BASH_SOURCE[0]}")/.."
  folder="${1:-build/offstage-bundle}"
  [[ ! -e "$folder" || -e "$folder/bin/offstage" ]] || die "$folder exists and is no bundle"
  build
  rm -rf "$folder"
  mkdir -p "$folder/bin" "$folder/lib"
  local program mib
  for program in $PROGRAMS $OPTIONAL_PROGRAMS; do
    [[ ! -x "$BUILD/$program" ]] || add_program "$program"
  done
  add_libraries
  cp -L "$BUILD/offstage-demo.gguf" "$folder/bin/"  # where `offstage run` looks for it
  cp scripts/gpu_suite.sh LICENSE "$folder/"
  mib=$(($(du -sk "$folder" | cut -f1) / 1024 + 1))
  [[ $mib -le $MIB_MAX ]] || die "$mib MiB, at most $MIB_MAX"
  say "$folder: $mib MiB, $(find "$folder/bin" -type f | wc -l) programs," \
    "$(find "$folder/lib" -type f | wc -l) libraries"
}

main "$@"
