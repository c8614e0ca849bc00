#!/usr/bin/env bash
# Test the project: build it, start a Slurm, run everything as an ordinary user, take Slurm down.
#
#     bash tests/run.sh [pytest arguments]
#
# As root on Debian it installs what is missing. Without root, or without apt where Slurm is
# missing, the tests that need a cluster are left out and listed at the end.
#
# Environment:
#   SLURM_FUTURES_TEST_CLUSTER     root folder of a running test cluster to use instead
#   SLURM_FUTURES_VENV             virtual environment to make or reuse, for speed
#   SLURM_FUTURES_REQUIRE_CLUSTER  1: a cluster test that is left out fails the run
#   PYTHON                         interpreter to make the virtual environment from
set -euo pipefail
umask 022

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=tests/lib.sh
. "$checkout/tests/lib.sh"

scratch=
own_cluster=

cluster() {
    (cd / && "$python" -B "$checkout/tests/cluster/cluster.py" "$@")
}

clean_up() {
    local status=$?
    if [ -n "$own_cluster" ]; then
        cluster down --root "$own_cluster" >/dev/null || true
        if [ "$status" = 0 ]; then rm -rf "$own_cluster"; fi
    fi
    [ -z "$scratch" ] || rm -rf "$scratch"
    exit "$status"
}

# Set SLURM_FUTURES_TEST_CLUSTER to a running cluster, or leave it empty.
find_cluster() {
    if [ -n "${SLURM_FUTURES_TEST_CLUSTER:-}" ]; then
        say "using the cluster in $SLURM_FUTURES_TEST_CLUSTER"
        return
    fi
    export SLURM_FUTURES_TEST_CLUSTER=
    if ! is_root; then
        say 'LEFT OUT: the tests marked "cluster": only root can start a Slurm'
    elif ! have "${CLUSTER_PROGRAMS[@]}" && ! install_packages "${CLUSTER_PACKAGES[@]}"; then
        say 'LEFT OUT: the tests marked "cluster": there is no Slurm'
    else
        start_cluster
    fi
}

start_cluster() {
    own_cluster=$(mktemp -d /var/lib/slurm_futures-tests.XXXXXX)
    say "starting a cluster in $own_cluster (its logs stay there when tests fail)"
    cluster up --root "$own_cluster" --port 0 --user "$TEST_USER" --accounting >&2
    SLURM_FUTURES_TEST_CLUSTER=$own_cluster
}

# The tests as their user sees them: without the checkout's package beside them.
copy_tests() {
    mkdir "$scratch/run"
    local part
    for part in tests examples README.md pyproject.toml; do
        [ ! -e "$checkout/$part" ] || cp -R "$checkout/$part" "$scratch/run"
    done
    find "$scratch/run" -name __pycache__ -prune -exec rm -rf {} +
}

run_pytest() {
    local home=$HOME user as=()
    user=$(id -un)
    if is_root; then
        user=$TEST_USER
        id "$user" >/dev/null 2>&1 || useradd --create-home --shell /bin/bash "$user"
        chown -R "$user:" "$scratch/run"
        home=$(getent passwd "$user" | cut -d: -f6)
        as=(runuser -u "$user" --)
    fi
    local path="$venv/bin:/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
    cd "$scratch/run"
    "${as[@]}" env -i PATH="$path" HOME="$home" USER="$user" LOGNAME="$user" SHELL=/bin/bash \
        LANG=C.UTF-8 TERM="${TERM:-dumb}" ${CI:+CI="$CI"} \
        SLURM_FUTURES_TEST_CLUSTER="$SLURM_FUTURES_TEST_CLUSTER" \
        SLURM_FUTURES_REQUIRE_CLUSTER="${SLURM_FUTURES_REQUIRE_CLUSTER:-}" \
        "$venv/bin/pytest" -o cache_dir="$scratch/run/.cache" "$@"
}

trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
need_python
scratch=$(make_scratch)
venv=${SLURM_FUTURES_VENV:-$scratch/venv}
say "building, with $python, into $venv"
make_venv "$checkout" "$venv" test "$scratch"
find_cluster
copy_tests
run_pytest "$@"
