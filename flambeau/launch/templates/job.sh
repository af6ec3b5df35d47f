
# ---- What follows is the same in every job. ----

# The name that scontrol and squeue know: the number alone of an array's task may mean the whole array.
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}
restarts=${SLURM_RESTART_COUNT:-0}
say() { echo "job $job: $*, $(date '+%F %T')"; }
say "start $((restarts + 1)) on $SLURM_JOB_NODELIST"

# The processes meet on the first node, at a port that other jobs on that node do not have.
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(scontrol show node "$first" | grep -o -m 1 'NodeAddr=[^ ]*')
master=${address#NodeAddr=}:$((20000 + SLURM_JOB_ID % 10000))

# On each node, around the training. Slurm sends signals to all processes there: this shell must outlive the training.
# To be stopped is no failure, or srun would kill the other nodes while they save: 75 is saved and stopped, 138 and 143
# are stopped by SIGUSR1 and SIGTERM before there was anything to save.
around='
trap : USR1 TERM
if [ "$SLURM_STEP_NUM_NODES" -gt 1 ]; then
    "$@" --nodes "$SLURM_STEP_NUM_NODES" --node-rank "$SLURM_NODEID" --master "$master"
else
    "$@"
fi
status=$?
case $status in
    75 | 138 | 143) exit 0 ;;
esac
exit "$status"
'
export master

# The time limit is near: the training saves and leaves.
trap 'signalled=yes; kill -USR1 "$step"' USR1
# Slurm ends the job (scancel, the time limit itself): wait for the training to save.
trap 'signalled=yes' TERM

# --export: all of the environment even where jobs are submitted with none; --wait: nodes may end at different times.
srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --cpus-per-task="$cpus" --export=ALL --wait=0 \
    --kill-on-bad-exit=1 bash -c "$around" flambeau "${training[@]}" </dev/null &
step=$!
while signalled=; wait "$step"; status=$?; [ "$signalled" ]; do :; done

finished() { grep -qs '"state": "finished"' "$run/status.json"; }
nodes_answer() {
    timeout 120 srun --overlap --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --export=ALL true </dev/null
}

if [ "$status" = 0 ] && finished; then
    say "finished"
    exit 0
fi
# Where Slurm has decided already (cancelled, out of time, requeued), it is not overruled.
state=$(squeue --noheader --jobs="$job" --format=%T)
[ "${state:-RUNNING}" = RUNNING ] || exit 75
# The others fail when a node is lost, long before Slurm notices. It is their node's failure, not the training's.
if [ "$status" != 0 ] && nodes_answer; then
    say "failed with status $status"
    exit "$status"
fi
if [ "$restarts" -ge "$max_requeues" ]; then
    say "stopped before its end, after $restarts requeues; to go on: sbatch $(printf %q "$script")"
    exit 75
fi
say "stopped before its end; requeued to go on"
for _ in 1 2 3 4 5 6; do # the controller may be busy
    scontrol requeue "$job" && break
    [ "$signalled" ] && break # it has requeued the job: this script and its scontrol are being ended
    sleep 10
done
exit 75
