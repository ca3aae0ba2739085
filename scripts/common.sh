# Sourced by the other scripts: talk, a Python that is new enough, packages of the system.
# shellcheck shell=bash disable=SC2034

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${XDG_CACHE_HOME:-${HOME:-~}/.cache}/joulegate # without HOME, ~ is what the system says
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore

say() { printf '%s\n' "$*" >&2; }

die() { # MESSAGE [HELP]
  printf 'error: %s\n' "$1" >&2
  [ $# -lt 2 ] || printf 'help: %s\n' "$2" >&2
  exit 1
}

apt_install() { # PACKAGE...: quietly; root, sudo, or an error that names the command
  local sudo=()
  command -v apt-get >/dev/null || die "cannot install: $*" "install them with your system's package manager"
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || die "need root to install: $*" "run: apt-get install $*"
    sudo=(sudo)
  fi
  local log
  log=$(mktemp)
  say "installing $* (apt)"
  if ! "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@" >"$log" 2>&1 </dev/null; then
    "${sudo[@]}" apt-get update >>"$log" 2>&1 </dev/null || true
    if ! "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@" >"$log" 2>&1 </dev/null; then
      tail -n 20 "$log" >&2
      rm -f "$log"
      die "apt-get could not install: $*"
    fi
  fi
  rm -f "$log"
}

need_command() { # COMMAND PACKAGE: install PACKAGE unless COMMAND is there
  command -v "$1" >/dev/null || [ -x "/usr/sbin/$1" ] || apt_install "$2"
}

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

can_make_venv() { "$1" -c 'import ensurepip, venv' 2>/dev/null; }

# The distribution's own comes first: it is built with profile-guided optimisation, what pyenv builds by default
# is not, and a request costs a quarter more CPU there.
find_python() { # prints a Python >= 3.11, installing one where the distribution has it
  local candidate=/usr/bin/python3
  if [ -x "$candidate" ] && is_new_enough "$candidate" && can_make_venv "$candidate"; then
    printf '%s\n' "$candidate"
    return
  fi
  for candidate in python3 python3.13 python3.12 python3.11 python3.14; do
    if command -v "$candidate" >/dev/null && is_new_enough "$candidate"; then
      command -v "$candidate"
      return
    fi
  done
  if command -v apt-cache >/dev/null && [ -n "$(apt-cache madison python3.11 2>/dev/null)" ]; then
    apt_install python3.11 python3.11-venv
    command -v python3.11
    return
  fi
  die "no Python 3.11 or newer here" "install one (python.org, deadsnakes, uv) and put it on PATH"
}

make_venv() { # PYTHON DIRECTORY
  local version
  if ! can_make_venv "$1"; then
    version=$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    apt_install "python$version-venv"
  fi
  "$1" -m venv "$2" || die "could not make a virtual environment in $2"
}

pip_install() { # PYTHON ARGS...: quiet; the log is shown only when it fails
  local python=$1 log
  shift
  log=$(mktemp)
  if ! "$python" -m pip install --quiet --progress-bar off "$@" >"$log" 2>&1 </dev/null; then
    tail -n 40 "$log" >&2
    rm -f "$log"
    return 1
  fi
  rm -f "$log"
}
