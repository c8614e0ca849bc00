# Shell functions that tests/run.sh and .ci/run share; to be sourced.
# shellcheck shell=bash

TEST_USER=sfuser
CLUSTER_PROGRAMS=(slurmctld slurmd sbatch munged slurmdbd mariadbd)
CLUSTER_PACKAGES=(slurm-wlm munge slurmdbd mariadb-server)

say() { printf '== %s\n' "$*" >&2; }

die() { say "$*"; exit 1; }

is_root() { [ "$(id -u)" = 0 ]; }

# Whether all programs are there; the daemons lie where an ordinary PATH does not look.
have() {
    local program
    for program in "$@"; do
        PATH="/usr/local/sbin:/usr/sbin:/sbin:$PATH" command -v "$program" >/dev/null || return 1
    done
}

# Install Debian packages; fails, saying why, where that is not to be had.
install_packages() {
    is_root || { say "cannot install $*: not root"; return 1; }
    have apt-get || { say "cannot install $*: no apt-get"; return 1; }
    say "installing $*"
    local log
    log=$(mktemp)
    if { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes \
        --no-install-recommends "$@"; } >"$log" 2>&1 </dev/null; then
        rm -f "$log"
    else
        tail -n 20 "$log" >&2
        rm -f "$log"
        say "cannot install $*: see above"
        return 1
    fi
}

# Whether an interpreter is new enough, can make a virtual environment, and may be run by the
# user who runs the tests (one below /root may not).
suits() {
    local check='import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 10))'
    local as=()
    is_root && as=(setpriv --reuid=65534 --regid=65534 --clear-groups)
    (cd / && "${as[@]}" "$1" -c "$check") >/dev/null 2>&1
}

# Print the interpreter to use: $PYTHON, Debian's, or the one on PATH.
find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} /usr/bin/python3 "$(command -v python3)"; do
        if suits "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

# Set $python, installing Debian's where there is none.
need_python() {
    python=$(find_python) && return
    install_packages python3 python3-venv || die 'no Python 3.10 or later with venv'
    python=$(find_python) || die 'no Python 3.10 or later that the test user may run'
}

# Make or refresh a virtual environment: the project's wheel, built from a copy, so that the
# checkout is neither written to nor imported; and one dependency group.
# Usage: make_venv CHECKOUT VENV GROUP SCRATCH
make_venv() {
    local checkout=$1 venv=$2 group=$3 scratch=$4
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
    local pip=("$venv/bin/python" -m pip --disable-pip-version-check -qq)
    # Dependency groups came with pip 25.1.
    "$venv/bin/python" -c 'import pip, sys
sys.exit([int(n) for n in pip.__version__.split(".")[:2]] < [25, 1])' ||
        "${pip[@]}" install --upgrade 'pip>=25.1'
    rm -rf "$scratch/source" "$scratch/wheel"
    mkdir -p "$scratch/source"
    cp -R "$checkout"/{pyproject.toml,setup.cfg,README.md,slurm_futures} "$scratch/source"
    "${pip[@]}" wheel --no-deps --wheel-dir "$scratch/wheel" "$scratch/source"
    "${pip[@]}" install --group "$scratch/source/pyproject.toml:$group" "$scratch"/wheel/*.whl
    # The version does not change from one commit to the next.
    "${pip[@]}" install --force-reinstall --no-deps "$scratch"/wheel/*.whl
    rm -rf "$scratch/source"
}

# A folder that every user may enter.
make_scratch() {
    local folder
    folder=$(mktemp -d /var/tmp/slurm_futures-tests.XXXXXX)
    chmod 755 "$folder"
    echo "$folder"
}
