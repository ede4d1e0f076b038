# shellcheck shell=bash
# What the jobs in this folder share; each sources it after its settings, and calls what it needs.
#
# How a job ends decides whether it begins again:
#   USR1 to this shell    the limit is near: checkpoint, then we requeue this very task
#   TERM to the steps     preemption's grace begins: checkpoint, then likewise
#   TERM to this shell    scancel, the limit, or Slurm's own requeue: whatever Slurm wants; a requeue
#                         of ours would undo a scancel
#   anything else         finished, or failed: no second try
: "${code:?}" "${python:?}" "${max_restarts:=20}"
declare -a container words

# Never $SLURM_JOB_ID alone: that of an array's last task is the id of the whole array.
task=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}
restarts=${SLURM_RESTART_COUNT:-0}
signal='' child='' interrupted='' status=1

# No trap on CONT, which Slurm sends along: beside one, bash has lost the trap on USR1.
forward() {
    signal=$1 interrupted=1
    if [ -n "$child" ]; then kill -s "$1" "$child" 2>/dev/null; fi
}
trap 'forward USR1' USR1
trap 'forward TERM' TERM

say() { echo "[$(date -u +%FT%TZ) job $task on $SLURMD_NODENAME] $*"; }

# A module of the tree in $code, whatever the working folder has.
wavefold() { "${container[@]}" "$python" "$code/launch/module.py" "$@"; }

# Runs a command to its end, $status, with the signals that this shell gets. (A function of the
# shell would be a process of its own, and keep them.)
supervise() {
    "$@" &
    child=$!
    if [ -n "$signal" ]; then kill -s "$signal" "$child"; fi
    while
        interrupted=''
        wait "$child"
        last=$?
        if [ "$last" != 127 ]; then status=$last; fi # 127: told already
        [ -n "$interrupted" ]                        # a trap ends `wait` early
    do :; done
    child=''
}

newest_checkpoint() {
    local newest
    for newest in "$run"/checkpoints/step-*; do :; done
    newest=${newest##*/}
    echo "${newest/step-\*/none}"
}

note() { echo "$(date -u +%FT%TZ) $task $SLURMD_NODENAME $*" >>"$run/lives.txt"; }

# Opens a life of the training in $run, unless it has had too many, or has come to nothing in two.
begin_life() {
    mkdir -p "$run" || exit
    if ! find "$run/lock.json" -mmin -5 2>/dev/null | grep -q .; then # else another has the folder
        if [ -f "$run/train.log" ] && ! [ -L "$run/train.log" ]; then mv "$run"/train{,-before}.log; fi
        ln -srfn "$(readlink "/proc/$$/fd/1")" "$run/train.log"
        rm -f "$run/requeue" # of an earlier life
    fi
    step=$(newest_checkpoint)
    if [ "$restarts" -gt "$max_restarts" ]; then give_up; fi
    if [ -e "$run/lives.txt" ] && awk -v task="$task" -v step="$step" '
        $2 == task && $4 == "begin" { n = $5 == step ? n + 1 : 0 } END { exit n < 2 }' "$run/lives.txt"
    then
        say "stopped: two lives made no checkpoint after $step; raise --time, or lower train.save_every"
        note end 1
        exit 1
    fi
    note begin "$step"
    say "begins at $step, restart $restarts"
}

# Closes it, by a requeue of this task where it was stopped, by its exit code where it was not.
end_life() {
    # A signal that meets a training as it leaves may kill it, or its launcher, with all of it done.
    if [ -n "$signal" ] && [ "$run/scores.json" -nt "$run/lives.txt" ]; then status=0; fi
    note end "$status"
    if [ "$status" = 0 ]; then exit 0; fi
    if [ "$signal" = USR1 ]; then
        if [ -e "$run/requeue" ] || [ "$status" = 138 ]; then requeue 'the limit is near'; fi
    elif [ -z "$signal" ] && scontrol show job -o "$task" | grep -q 'PreemptTime=[0-9]'; then
        requeue 'preempted'
    fi
    say "ended with exit code $status${signal:+ after SIG$signal}"
    exit "$status"
}

requeue() {
    if [ "$restarts" -ge "$max_restarts" ]; then give_up; fi
    say "requeued: $1"
    scontrol requeue "$task"
    exit 75
}

give_up() {
    say "stopped: $restarts restarts, max_restarts=$max_restarts; submit it again to go on"
    if [ -n "$run" ]; then note end 1; fi
    exit 1
}

# A life of the training of $config with $words: one launcher a node. Its processes get the signals,
# and have PET_SHUTDOWN_TIMEOUT seconds to save.
train() {
    run=${run:-$(wavefold launch.node folder "${config:?}" "${words[@]}")}
    [ -n "$run" ] || exit 2
    begin_life
    export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGUSR1 PET_SHUTDOWN_TIMEOUT=120
    WAVEFOLD_NODES=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | paste -sd ' ')
    export WAVEFOLD_NODES
    supervise srun --kill-on-bad-exit=1 --nodes="${nodes:?}" --ntasks-per-node=1 \
        --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
        "${container[@]}" "$python" "$code/launch/module.py" launch.node start --nodes="$nodes" \
        --gpus="${gpus:?}" --strategy="${strategy:?}" -- "$config" "${words[@]}"
    end_life
}
