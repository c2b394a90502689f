#!/usr/bin/env bash
#flux: --job-name=cartpole
#flux: --nodes=2
#flux: --nslots=8
#flux: --time-limit=60m
#flux: --output=cartpole-{{id}}.out
# Flux: flux batch launch/job.flux, from the folder with .venv
set -uo pipefail
export OMP_NUM_THREADS=1
limit_s=3600 notice_s=120  # the time limit above in seconds, and how long before it SIGUSR1 comes
run=${RUN:-runs/cartpole-job$(flux getattr jobid)}  # a job that follows is told the run of the first
script=${SCRIPT:-launch/job.flux}

held=(env); ! env --block-signal=USR1 true 2> /dev/null || held+=(--block-signal=USR1)  # until Python listens
ranks=$(flux submit -n 8 "${held[@]}" .venv/bin/python -m distqtrl train cartpole --run "$run") || exit 1
signalled=''
trap 'signalled=1; flux job kill --signal=SIGUSR1 "$ranks"' USR1
flux job attach "$ranks" &
launched=$!
(trap 'kill "$!"' TERM; sleep $((limit_s - notice_s)) & wait "$!" && kill -USR1 "$$") &
timer=$!
while true; do
    wait "$launched"
    code=$?
    [ -n "$signalled" ] || break  # the signal ended the wait, not the ranks
    signalled=''
done
kill "$timer" 2>/dev/null
[ ! -e "$run/result.json" ] || exit 0  # the mark of a complete training, whatever the launcher says
# stopped by SIGUSR1, and saved: another job of the instance that this one is a part of goes on
[ "$code" != 75 ] || RUN=$run SCRIPT=$script flux --parent batch "$script"
if [ "$code" = 0 ]; then
    echo "the launcher says 0, but $run has no result.json: the training is not complete" >&2
    code=1
fi
exit "$code"
