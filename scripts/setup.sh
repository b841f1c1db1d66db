#!/usr/bin/env bash
# Set the project up on a machine that has never seen it: .venv, dependencies, rendering, weights; then look at it all
# (scripts/doctor.py).
#
#   bash scripts/setup.sh              everything; run again, it only does what is missing
#   bash scripts/setup.sh --no-render  without checking or installing what the simulator needs to render
#
# Needs Python 3.11 or newer. Nothing outside the repository is installed unless rendering does not work, the user is
# root and the system is Debian or Ubuntu; otherwise the commands to run are printed. PYTHON=/path chooses the Python.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=.venv
packages="libvulkan1 mesa-vulkan-drivers libgl1 libglib2.0-0"
backports=/etc/apt/sources.list.d/mvp-lam-backports.list

say() { echo "setup: $*" >&2; }
fail() { say "$*"; exit 1; }

with_render=yes
case "${1:-}" in
    "") ;;
    --no-render) with_render=no ;;
    *) fail "unknown option $1; the only one is --no-render" ;;
esac

is_python() { "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3.12 python3.11 python3.13 python3; do
        if is_python "$candidate"; then command -v "$candidate"; return; fi
    done
    return 1
}

system_is() { (. /etc/os-release 2>/dev/null && [[ " ${ID:-} ${ID_LIKE:-} " == *" $1 "* ]]); }
system_field() { (. /etc/os-release && echo "${!1:-}"); }
can_install() { [[ $(id -u) == 0 ]] && system_is debian && command -v apt-get >/dev/null; }
apt_get() { DEBIAN_FRONTEND=noninteractive apt-get -qq "$@" >/dev/null; }

make_venv() {
    local python wanted
    if ! [[ -x $venv/bin/python ]]; then
        python=$(find_python) || fail "no Python >= 3.11 with venv found; on Debian or Ubuntu: apt-get install python3-venv," \
            "elsewhere install Python 3.12, or name one: PYTHON=/path/to/python3.12 bash scripts/setup.sh"
        say "making $venv with $python"
        "$python" -m venv "$venv"
    fi
    wanted="$(sha256sum <pyproject.toml | cut -d' ' -f1) $("$venv/bin/python" -c 'import platform; print(platform.python_version())') $PWD"
    if [[ $(cat "$venv/installed" 2>/dev/null) == "$wanted" ]]; then
        say "dependencies are up to date in $venv"
        return
    fi
    say "installing the project and its dependencies into $venv (several GB, some minutes)"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e '.[dev]' ||
        fail "pip could not install the dependencies; its message is above. Mend that and run this again: it goes on"
    echo "$wanted" >"$venv/installed"
}

# Does what the simulator does at its start, on the device it would choose; prints the last line of an error, if any.
render_error() {
    local output
    output=$("$venv/bin/python" - 2>&1 <<'PYTHON'
import shutil

import cv2
import sapien

device = sapien.Device("cuda" if shutil.which("nvidia-smi") else "cpu")
sapien.render.RenderSystem(device)
PYTHON
    ) || echo "$output" | tail -n 1
}

# Debian 12 has Mesa 22 and keeps the one that SAPIEN needs (25) in backports: the same server, found in the machine's sources.
add_backports() {
    local codename=$1 server keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    server=$(apt-get indextargets --format '$(REPO_URI)' \
        'Identifier: Packages' 'Origin: Debian' "Release: $codename" 'Component: main' | head -n 1)
    [[ -n $server ]] || fail "no apt source of Debian $codename found; add its backports by hand, then run this again"
    [[ -f $keyring ]] && keyring="[signed-by=$keyring] " || keyring=""
    say "adding $codename-backports to apt ($backports), for mesa-vulkan-drivers >= 25"
    echo "deb ${keyring}${server} $codename-backports main" >"$backports"
    apt_get update -o "Dir::Etc::sourcelist=$backports" -o Dir::Etc::sourceparts=- -o APT::Get::List-Cleanup=0
}

install_rendering() {
    local from=()
    say "installing $packages"
    apt_get update || say "apt-get update had problems (above); going on with what it has"
    if [[ $(system_field ID)-$(system_field VERSION_ID) == debian-12 ]]; then
        add_backports bookworm
        from=(-t bookworm-backports)
    fi
    # shellcheck disable=SC2086
    apt_get install --no-install-recommends -y "${from[@]}" $packages || fail "apt-get install failed; its message is above"
}

explain_rendering() {
    say "the simulator cannot render here: $1"
    if command -v nvidia-smi >/dev/null; then
        say "this machine has an NVIDIA GPU: install the Vulkan part of its driver (libnvidia-gl-<version>) and libvulkan1;"
        say "in a container set NVIDIA_DRIVER_CAPABILITIES=all and install libvulkan1 libgl1 libglib2.0-0 libegl1"
    elif [[ -r /etc/os-release && $(system_field ID)-$(system_field VERSION_ID) == debian-12 ]]; then
        say "as root, enable bookworm-backports in apt's sources, then:"
        say "  apt-get update && apt-get install -t bookworm-backports $packages"
    else
        say "as root: apt-get update && apt-get install $packages   (mesa-vulkan-drivers must be 25 or newer)"
    fi
    fail "run this again afterwards, or with --no-render to go on without the simulator"
}

check_rendering() {
    local error
    if [[ $with_render == no ]]; then
        say "WARNING: rendering not checked (--no-render); simulated benchmarks may not run"
        return
    fi
    error=$(render_error)
    if [[ -n $error ]] && can_install && ! command -v nvidia-smi >/dev/null; then
        say "the simulator cannot render yet ($error)"
        install_rendering
        error=$(render_error)
    fi
    [[ -z $error ]] || explain_rendering "$error"
    say "rendering works"
}

if ! [[ -x $venv/bin/python ]] && ! find_python >/dev/null && can_install; then
    say "installing python3-venv"
    apt_get update && apt_get install --no-install-recommends -y python3-venv || fail "apt-get could not install python3-venv"
fi
make_venv
check_rendering
"$venv/bin/python" -m core.weights
examination=(scripts/doctor.py)
[[ $with_render == yes ]] || examination+=(--no-render)
"$venv/bin/python" "${examination[@]}" || fail "a FAIL above stops the work; mend it by the command in its line and run this again"
say "done; use $venv/bin/python, or: source $venv/bin/activate"
