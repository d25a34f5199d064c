#!/usr/bin/env bash
# Installs what Offstage is built and checked with. Debian and Ubuntu: through apt, only what is
# missing. Elsewhere: says what is missing and exits with 1 if anything is.
#
#   scripts/setup.sh               everything that scripts/check.sh needs
#   scripts/setup.sh --run-only    what scripts/quickstart.sh needs
#   scripts/setup.sh --probe-only  installs nothing, says what is missing
set -euo pipefail
export LC_ALL=C DEBIAN_FRONTEND=noninteractive

readonly CMAKE_MIN=3.25
readonly BOOST_MIN=1.81

# package                 what for
readonly RUN_PACKAGES='
g++                       compiler
cmake                     build
ninja-build               build
pkg-config                finds the libraries without CMake files
python3                   scripts
python3-numpy             make_model.py
liburing-dev              io_uring engine
libxxhash-dev             hashes of the weights
libboost-dev              queues between threads, hash maps
libhwloc-dev              cores to bind to
libfmt-dev                text
libexpected-dev           Result<T>
libpcre2-dev              pre-tokenizers
libutf8proc-dev           Unicode classes
libzip-dev                routing traces in .npz archives
libcli11-dev              command line
nlohmann-json3-dev        JSON
libjs-dygraphs            charts of the report, embedded
libgtest-dev              tests
libgmock-dev              tests
libbenchmark-dev          benches'

readonly CHECK_PACKAGES='
clang                     fuzz targets
libclang-rt-14-dev        libFuzzer, sanitizers of clang
llvm                      function names in what the fuzzer finds
clang-format-14           format check, of this version and no other
libboost-context-dev      fibers, as which the tests run the threads of a GPU'

usage() {
  sed -n '2,8s/^# \{0,1\}//p' "$0"
}

say() {
  printf 'setup: %s\n' "$*"
}

die() {
  printf 'setup: %s\n' "$*" >&2
  exit 1
}

have() {
  command -v "$1" >/dev/null
}

is_installed() {
  [[ "$(dpkg-query -W -f '${Status}' "$1" 2>/dev/null)" == 'install ok installed' ]]
}

apt_version() {  # of the version apt would install; empty if there is none
  apt-cache policy "$1" 2>/dev/null | sed -n 's/^  Candidate: //p' | grep -v '(none)' || true
}

# Debian 12 has the Boost we need beside an older default; newer systems have it as the default.
boost_package() {
  local default
  is_installed "libboost$BOOST_MIN-dev" && { echo "libboost$BOOST_MIN-dev"; return; }
  default="$(apt_version libboost-dev)"
  if [[ -n "$default" ]] && dpkg --compare-versions "$default" ge "$BOOST_MIN"; then
    echo libboost-dev
  else
    echo "libboost$BOOST_MIN-dev"
  fi
}

# Boost's parts come with the version of its headers.
boost_context_package() {
  local headers
  headers="$(boost_package)"
  echo "${headers/-dev/}" | sed -E 's/^libboost/libboost-context/; s/$/-dev/'
}

# libclang_rt of the clang that `clang` stands for, which is 14 on Debian 12 only.
clang_rt_package() {
  local version
  version="$(apt_version clang | sed -n 's/^\([0-9]*:\)\{0,1\}\([0-9]*\)\..*/\2/p')"
  echo "libclang-rt-${version:-14}-dev"
}

# Reads package names, writes those that are not installed, as this system calls them.
missing_packages() {
  local package
  while read -r package; do
    case "$package" in
      libboost-dev) package="$(boost_package)" ;;
      libboost-context-dev) package="$(boost_context_package)" ;;
      libclang-rt-14-dev) is_installed "$package" || package="$(clang_rt_package)" ;;
    esac
    is_installed "$package" || echo "$package"
  done
}

# Of the given packages, those that apt doesn't know.
unknown_packages() {
  local package
  for package in "$@"; do
    [[ -n "$(apt_version "$package")" ]] || echo "$package"
  done
}

as_root() {
  if [[ "$(id -u)" == 0 ]]; then
    "$@"
  else
    sudo "$@"
  fi
}

# apt may want to remove what conflicts. Headers of an older Boost are replaced, and it is said;
# anything else is for a person to decide.
check_removals() {
  local removed
  removed="$(apt-get -s --no-install-recommends install "$@" | sed -n 's/^Remv \([^ ]*\).*/\1/p')"
  [[ -z "$removed" ]] && return
  if grep -qvE '^libboost[a-z0-9.-]*-dev$' <<<"$removed"; then
    die "apt would remove $(tr '\n' ' ' <<<"$removed")- install by hand: apt-get install $*"
  fi
  say "replaces the older Boost headers:" $removed
}

install_packages() {
  say "installs $*"
  check_removals "$@"
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o Dpkg::Use-Pty=0 \
    --no-install-recommends install "$@"
}

set_up_debian() {
  local wanted missing unknown
  wanted="$(awk 'NF { print $1 }' <<<"$1")"
  missing="$(missing_packages <<<"$wanted")"
  if [[ -z "$missing" ]]; then
    say "all packages are there"
    return
  fi
  if [[ "$(id -u)" != 0 ]] && ! have sudo; then
    die "not root and no sudo; missing:" $missing
  fi
  # Names are settled after an update: a bare system knows no candidates before.
  as_root apt-get -q -o Dpkg::Use-Pty=0 update
  missing="$(missing_packages <<<"$wanted")"
  unknown="$(unknown_packages $missing)"
  if [[ "$unknown" == clang-format-14 ]]; then
    say "clang-format-14 is not to be had here: the format check will be skipped"
    missing="$(grep -vx clang-format-14 <<<"$missing" || true)"
  elif [[ -n "$unknown" ]]; then
    die "no such package on this system:" $unknown
  fi
  [[ -z "$missing" ]] || install_packages $missing
}

probe_command() {
  have "$1" || echo "$1 ($2)"
}

# One configure run asks CMake for each library the way CMakeLists.txt does.
probe_libraries() {
  local folder
  folder="$(mktemp -d)"
  cat >"$folder/CMakeLists.txt" <<CMAKE
cmake_minimum_required(VERSION $CMAKE_MIN)
project(probe LANGUAGES CXX)
find_package(PkgConfig QUIET)
foreach(package fmt nlohmann_json tl-expected CLI11 GTest benchmark)
  find_package(\${package} QUIET)
  if(NOT \${package}_FOUND)
    message("missing: \${package} (CMake package)")
  endif()
endforeach()
find_package(Boost $BOOST_MIN QUIET CONFIG COMPONENTS headers)
if(NOT Boost_FOUND)
  message("missing: Boost >= $BOOST_MIN (headers and CMake package)")
endif()
find_path(DYGRAPHS dygraph.min.js
          PATH_SUFFIXES share/javascript/dygraphs lib/node_modules/dygraphs/dist)
if(NOT DYGRAPHS)
  message("missing: dygraph.min.js (npm's dygraphs; elsewhere: cmake -DOFFSTAGE_DYGRAPHS=FOLDER)")
endif()
foreach(module liburing libxxhash hwloc libpcre2-8 libutf8proc)
  if(PkgConfig_FOUND)
    pkg_check_modules(FOUND_\${module} QUIET \${module})
  endif()
  if(NOT FOUND_\${module}_FOUND)
    message("missing: \${module} (pkg-config module)")
  endif()
endforeach()
CMAKE
  if ! cmake -G Ninja -S "$folder" -B "$folder/build" -Wno-dev >"$folder/log" 2>&1; then
    echo "a C++ compiler and CMake >= $CMAKE_MIN that work together:"
    tail -n 20 "$folder/log"
  fi
  sed -n 's/^missing: //p' "$folder/log"
  rm -r "$folder"
}

probe() {
  local everything="$1" missing
  missing="$(
    probe_command cmake "$CMAKE_MIN or newer"
    probe_command ninja "build"
    probe_command c++ "C++20: GCC 12 or newer"
    probe_command pkg-config "finds libraries"
    probe_command python3 "scripts"
    python3 -c 'import numpy' 2>/dev/null || /usr/bin/python3 -c 'import numpy' 2>/dev/null ||
      echo "numpy for python3 (make_model.py)"
    if have cmake && have ninja && have c++; then probe_libraries; fi
    if [[ "$everything" == 1 ]]; then
      probe_command clang++ "fuzz targets, with libFuzzer"
      have clang-format-14 ||
        clang-format --version 2>/dev/null | grep -q 'version 14\.' ||
        echo "clang-format 14 (format check)"
    fi
  )"
  if [[ -n "$missing" ]]; then
    die "missing here:"$'\n'"$missing"
  fi
  say "everything is there"
}

main() {
  local everything=1 probe_only=0 argument
  for argument in "$@"; do
    case "$argument" in
      --run-only) everything=0 ;;
      --probe-only) probe_only=1 ;;
      -h | --help) usage; return ;;
      *) usage >&2; die "unknown option $argument" ;;
    esac
  done
  local packages="$RUN_PACKAGES"
  [[ "$everything" == 1 ]] && packages+="$CHECK_PACKAGES"
  if [[ "$probe_only" == 0 ]] && have apt-get && have dpkg-query; then
    set_up_debian "$packages"
  else
    [[ "$probe_only" == 1 ]] || say "not Debian or Ubuntu: installs nothing, looks what is missing"
    probe "$everything"
  fi
}

main "$@"
