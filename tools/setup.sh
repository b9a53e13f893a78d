# Shared by tools/test, tools/demo and tools/bench: system packages, .venv,
# .venv-services and .venv-upstream.
# Source it; it defines functions only.

say() { printf '\n== %s\n' "$*"; }

# The packages of bindep.txt for the given profiles, in Debian's names.
packages_of() {
    python3 - "$ROOT/bindep.txt" "$@" <<'PYTHON'
import re
import sys

wanted = set(sys.argv[2:])
for line in open(sys.argv[1]):
    name, _, selector = line.split('#')[0].strip().partition('[')
    words = selector.rstrip(']').split()
    profiles = {word for word in words if not word.startswith('platform:')}
    if not name or 'platform:rpm' in words:
        continue
    if not profiles or profiles & wanted:
        print(name.strip())
PYTHON
}

# Install what is missing, with apt where we may; say what is missing where
# we may not.
system_packages() {
    local missing=() package
    for package in $(packages_of "$@"); do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null |
            grep -q 'ok installed' || missing+=("$package")
    done
    if ! python3 -c 'import ensurepip' 2>/dev/null; then
        missing+=(python3-venv)
    fi
    [ ${#missing[@]} -eq 0 ] && return 0
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
        echo "Not installed here: ${missing[*]}. As root on Debian this" \
            "script installs them; otherwise install them yourself." >&2
        return 0
    fi
    say "Installing Debian packages: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q >"$LOG" 2>&1 || { cat "$LOG" >&2; return 1; }
    apt-get install -y -q --no-install-recommends "${missing[@]}" \
        >"$LOG" 2>&1 || { cat "$LOG" >&2; return 1; }
}

# Make .venv with this checkout in it (editable), and the requirement files
# given. A stamp of all that decides its content makes the second run fast.
virtual_environment() {
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "Python 3.11 or newer is needed; this is $(python3 -V)." >&2
        return 1
    }
    local stamp files=("$ROOT/requirements.txt" "$@")
    stamp=$(cat "${files[@]}" "$ROOT"/{constraints.txt,setup.cfg} |
        sha256sum | cut -d' ' -f1)
    local done_file="$VENV/.done-$stamp"
    if [ -e "$done_file" ] && [ -x "$VENV/bin/cinder-cow" ]; then
        ceph_modules
        return 0
    fi
    say "Making $VENV (Python packages from PyPI)"
    [ -x "$VENV/bin/python" ] || python3 -m venv "$VENV" || return 1
    local args=() file
    for file in "${files[@]}"; do args+=(-r "$file"); done
    # Without git history (a tarball) pbr needs to be told the version.
    git -C "$ROOT" rev-parse HEAD >/dev/null 2>&1 ||
        export PBR_VERSION="${PBR_VERSION:-0.0.1}"
    "$VENV/bin/python" -m pip --disable-pip-version-check install -q \
        -c "$ROOT/constraints.txt" "${args[@]}" -e "$ROOT" \
        >"$LOG" 2>&1 || { cat "$LOG" >&2; return 1; }
    ceph_modules
    touch "$done_file"
}

# Show .venv, or the environment given, Debian's modules rados and rbd, which
# are not on PyPI, and not the other packages beside them. They are for one
# minor version of Python: with another one, the tests that need them are
# skipped.
ceph_modules() {
    local packages=/usr/lib/python3/dist-packages site suffix module
    local python="${1:-$VENV}/bin/python"
    { read -r site && read -r suffix; } < <("$python" -c 'if True:
        import sysconfig
        print(sysconfig.get_path("purelib"))
        print(sysconfig.get_config_var("EXT_SUFFIX"))')
    for module in rados rbd; do
        [ -e "$packages/$module$suffix" ] || continue
        ln -sfn "$packages/$module$suffix" "$packages/$module"-*.egg-info \
            "$site/"
    done
}

# Make .venv-services: the services of OpenStack that tests talk to, apart
# from .venv, so that what they pin does not decide what we run with.
services_environment() {
    pinned_environment "$SERVICES" "$ROOT/tools/services.txt" || return 1
    ceph_modules "$SERVICES"
}

# Make .venv-upstream: Cinder, whose own driver ours is measured beside.
upstream_environment() {
    pinned_environment "$UPSTREAM" "$ROOT/tools/upstream.txt" || return 1
    ceph_modules "$UPSTREAM"
}

# Make an environment of exactly what a file pins.
pinned_environment() {
    local stamp place=$1 pins=$2
    stamp=$(sha256sum <"$pins" | cut -d' ' -f1)
    local done_file="$place/.done-$stamp"
    [ -e "$done_file" ] && [ -x "$place/bin/python" ] && return 0
    say "Making $place (Python packages from PyPI)"
    [ -x "$place/bin/python" ] || python3 -m venv "$place" || return 1
    # The pins are whole, so there is nothing to resolve.
    "$place/bin/python" -m pip --disable-pip-version-check install -q \
        --no-deps -r "$pins" >"$LOG" 2>&1 || { cat "$LOG" >&2; return 1; }
    "$place/bin/python" -m pip --disable-pip-version-check check \
        >"$LOG" 2>&1 || { cat "$LOG" >&2; return 1; }
    touch "$done_file"
}

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV="$ROOT/.venv"
SERVICES="$ROOT/.venv-services"
UPSTREAM="$ROOT/.venv-upstream"
LOG=$(mktemp -t cinder-cow-setup.XXXXXX)
trap 'rm -f "$LOG"' EXIT
