#!/usr/bin/env bash
# Ranks on this machine, or on hosts that ssh reaches, without a scheduler:
#
#   launch/local.sh 4 train cartpole                            four ranks here
#   HOSTS=node1:2,node2:2 launch/local.sh 4 train cartpole      two on each of two hosts that share this folder
#
# BIN is the folder with python and mpirun (.venv/bin, else those on PATH); MPIRUN_FLAGS go to mpirun (--with-ft ulfm).
# SIGUSR1 to this script saves and ends the run with 75; Ctrl-C and SIGTERM save, too. When a host is cut off, the
# ranks end by themselves after allreduce.timeout_s, but mpirun waits for its daemon there: this script ends it.
set -uo pipefail
[ $# -ge 2 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
ranks=$1
shift
case $ranks in '' | *[!0-9]* | 0) echo "local.sh: '$ranks' is no number of ranks: write such as 4" >&2; exit 2 ;; esac

bin=${BIN:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/.venv/bin}
python=python3 mpirun=mpirun
[ ! -x "$bin/python" ] || python=$bin/python
[ ! -x "$bin/mpirun" ] || mpirun=$bin/mpirun
command -v "$mpirun" >/dev/null || { echo "local.sh: there is no mpirun: pip install 'distqtrl[mpich]'" >&2; exit 2; }

flags=()
read -ra more <<<"${MPIRUN_FLAGS:-}"
if "$mpirun" --version | grep -q "Open MPI\|OpenRTE\|PRRTE"; then
    flags+=(--bind-to none --map-by :oversubscribe)
    [ "$(id -u)" != 0 ] || export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    [ -z "${HOSTS:-}" ] || flags+=(--host "$HOSTS")
else
    [ -z "${HOSTS:-}" ] || flags+=(-hosts "$HOSTS")
fi

launched='' signalled=''
for name in USR1 TERM INT; do
    # shellcheck disable=SC2064  # the name of now
    trap "signalled=1; kill -$name \"\$launched\"" "$name"
done
"$mpirun" "${flags[@]}" "${more[@]}" -n "$ranks" "$python" -m distqtrl "$@" &
launched=$!

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
exit "$code"
