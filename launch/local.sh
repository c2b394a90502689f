#!/usr/bin/env bash
# Ranks on this machine, or on hosts that ssh reaches, without a scheduler:
#
#   launch/local.sh 4 train cartpole                            four ranks here
#   HOSTS=node1:2,node2:2 launch/local.sh 4 train cartpole      two on each of two hosts that share this folder
#
# BIN is the folder with python and mpirun (.venv/bin, else those on PATH); MPIRUN_FLAGS go to mpirun (--with-ft ulfm).
# SIGUSR1 to this script saves and ends the run with 75; Ctrl-C, SIGTERM and SIGHUP save, too (130, 143, 129), with
# every MPI. When a host is cut off, the ranks end by themselves after allreduce.timeout_s, but mpirun waits for its
# daemon there: this script ends it.
set -uo pipefail
[ $# -ge 2 ] || { sed -n '2,10s/^# \{0,1\}//p' "$0" >&2; exit 2; }
ranks=$1
shift
case $ranks in '' | *[!0-9]* | 0) echo "local.sh: '$ranks' is no number of ranks: write such as 4" >&2; exit 2 ;; esac

bin=${BIN:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/.venv/bin}
python=python3 mpirun=mpirun
[ ! -x "$bin/python" ] || python=$bin/python
[ ! -x "$bin/mpirun" ] || mpirun=$bin/mpirun
command -v "$mpirun" >/dev/null || { echo "local.sh: there is no mpirun: pip install 'distqtrl[mpich]'" >&2; exit 2; }

flags=() openmpi=''
read -ra more <<<"${MPIRUN_FLAGS:-}"
if "$mpirun" --version | grep -q "Open MPI\|OpenRTE\|PRRTE"; then
    openmpi=1
    flags+=(--bind-to none --map-by :oversubscribe)
    [ "$(id -u)" != 0 ] || export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    [ -z "${HOSTS:-}" ] || flags+=(--host "$HOSTS")
else
    [ -z "${HOSTS:-}" ] || flags+=(-hosts "$HOSTS")
fi

launched='' signalled='' ending=''
# shellcheck disable=SC2317  # the traps call them
later_term() {
    for _ in {1..100}; do sleep 0.1 && kill -0 "$1" || return; done
    kill -TERM "$1"
}
# shellcheck disable=SC2317
stop() { # a signal, and the exit code after it; asked for the first time, the ranks save
    local sent=$1 launched=${launched:-${!-}}
    [ -n "$launched" ] || exit "$2"
    signalled=1
    if [ -z "$ending" ]; then
        ending=$2
        [ -z "$openmpi" ] && [ "$1" != HUP ] || sent=USR1 # which every mpirun hands on to its ranks
    fi
    kill "-$sent" "$launched"
    case $sent:$1 in USR1:INT | USR1:TERM) later_term "$launched" >/dev/null 2>&1 & ;; esac # somebody waits
}
trap 'stop USR1 75' USR1
trap 'stop HUP 129' HUP
trap 'stop INT 130' INT
trap 'stop TERM 143' TERM
set -m # a group of its own: Ctrl-C at the terminal, and its end, reach this script alone
"$mpirun" "${flags[@]}" "${more[@]}" -n "$ranks" "$python" -m distqtrl "$@" </dev/null &
launched=$!
set +m

if [ -n "${HOSTS:-}" ]; then # a daemon per host below mpirun: when one has left, the others have 15 s
    (
        most=0
        while kill -0 "$launched" 2>/dev/null; do
            count=$(pgrep -c -P "$launched" || true)
            [ "$count" -ge "$most" ] && most=$count && left=15
            [ "$count" -lt "$most" ] && left=$((left - 1))
            [ "$left" -gt 0 ] || { echo "local.sh: a host does not answer, mpirun is ended" >&2; kill -KILL "$launched"; break; }
            sleep 1
        done
    ) &
fi
while true; do
    wait "$launched"
    code=$?
    [ -n "$signalled" ] || break # the signal ended the wait, not the ranks
    signalled=''
done
[ "$code" != 75 ] || code=${ending:-75}
exit "$code"
