#!/usr/bin/env bash
# Makes .venv: every pinned package, the messages built with colcon, this package installed in place.
# Run through `make setup`; safe to run again. DISTRIBUTION: of ROS 2, kilted or jazzy.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3} DISTRIBUTION=${DISTRIBUTION:-kilted}
say() { printf '\033[1m==> %s\033[0m\n' "$*"; }

"$PYTHON" - <<'PY' || exit 1
import platform, sys
if not (3, 10) <= sys.version_info[:2] <= (3, 13):
    sys.exit(f'Python 3.10 to 3.13 is needed, this is {platform.python_version()}: run `make PYTHON=python3.12 setup`.')
if sys.platform != 'linux' or platform.machine() != 'x86_64':
    sys.exit('The ROS 2 wheels exist for Linux on x86-64 only: elsewhere build in a sourced ROS 2, see README, "In a ROS 2 workspace".')
PY

[ -f "requirements/$DISTRIBUTION.txt" ] \
  || { echo "DISTRIBUTION is $DISTRIBUTION: choose kilted or jazzy." >&2; exit 1; }
for other in .venv/.ready-*; do
  if [ -e "$other" ] && [ "$other" != ".venv/.ready-$DISTRIBUTION" ]; then
    echo "The .venv here is for ${other##*-}: run \`make clean\` before you change to $DISTRIBUTION." >&2
    exit 1
  fi
done

# --- system packages ---
include=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
missing=()
command -v cmake >/dev/null || missing+=(cmake)
command -v make >/dev/null || missing+=(make)
{ command -v gcc && command -v g++; } >/dev/null || missing+=(build-essential)
# Not `ldconfig -p | grep -q`: ldconfig is not on every user's path, and grep ends before it.
"$PYTHON" -c 'import ctypes.util, sys; sys.exit(not ctypes.util.find_library("OSMesa"))' \
  || missing+=(libosmesa6)
[ -f "$include/Python.h" ] || missing+=(python3-dev)
"$PYTHON" -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    say "installing system packages: ${missing[*]}"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  else
    echo "System packages are missing; please run: sudo apt-get install ${missing[*]}" >&2
    exit 1
  fi
fi

# A browser, for the test that opens a report; without it that test is skipped.
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null \
    && ! command -v chromium >/dev/null && ! command -v google-chrome >/dev/null; then
  say 'installing chromium for the tests'
  { [ ${#missing[@]} -gt 0 ] || apt-get update -qq; } \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null \
    || echo 'No chromium here: the test that opens a report will be skipped.' >&2
fi

# --- Python packages ---
say 'creating .venv and installing the pinned packages (a few minutes the first time)'
[ -x .venv/bin/python ] || { "$PYTHON" -m venv .venv && touch .venv/.made_by_setup; }
pip() { .venv/bin/python -m pip --disable-pip-version-check -q "$@"; }
pip install -r requirements/requirements.in -r "requirements/$DISTRIBUTION.txt" -c requirements/lock.txt
pip install --no-deps -r requirements/no-deps.txt

# --- messages ---
say 'building vla_msgs'
.venv/bin/python scripts/relocate_ros_wheels.py
mkdir -p .venv/log
packages=(vla_msgs)
# It has no wheel. Below a COLCON_IGNORE: in a workspace it would hide the real one.
.venv/bin/python -c 'import tf2_msgs.msg' 2>/dev/null || packages+=(scripts/ros/tf2_msgs)
(
  export PATH="$PWD/.venv/bin:$PATH" VIRTUAL_ENV="$PWD/.venv"
  export AMENT_PREFIX_PATH="$VIRTUAL_ENV" CMAKE_PREFIX_PATH="$VIRTUAL_ENV"
  colcon --log-base .venv/log build --base-paths "${packages[@]}" --build-base .venv/build \
    --merge-install --install-base "$VIRTUAL_ENV" --event-handlers console_direct- \
    --cmake-args -DBUILD_TESTING=OFF "-DPython3_EXECUTABLE=$VIRTUAL_ENV/bin/python" --no-warn-unused-cli \
    >.venv/log/vla_msgs.log 2>&1 || { cat .venv/log/vla_msgs.log >&2; exit 1; }
)

# --- this package, in place ---
pip install --no-deps --no-build-isolation -e . 2>.venv/log/install.log || { cat .venv/log/install.log >&2; exit 1; }
touch ".venv/.ready-$DISTRIBUTION"
say 'ready: `make demo`, `make test`, or `.venv/bin/vla --help`'
