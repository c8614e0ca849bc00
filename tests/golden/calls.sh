#!/bin/bash
shopt -s execfail
sf_spool=/home/u/.slurm_futures/runs/r1
sf_batch=3
sf_task=${SLURM_ARRAY_TASK_ID:-0}
sf_job=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}
sf_node=${SLURMD_NODENAME:-${HOSTNAME:-node}}
sf_post() {  # sf_post MEMBERS [BODY...]: write a message into the spool, complete or not at all
  local sf_name
  sf_name=$sf_batch.$sf_task-0$(date +%s%N)-$sf_node-$$-$RANDOM
  {
    printf '{"batch":%d,"task":%d,"job":"%s",' "$sf_batch" "$sf_task" "$sf_job"
    printf '"raw_id":"%s","restart":%d,' "$SLURM_JOB_ID" "${SLURM_RESTART_COUNT:-0}"
    printf '"host":"%s","pid":%d,%s}\n' "$sf_node" "$$" "$1"
    shift
    if [ $# -gt 0 ]; then printf '%s\0' "$@"; fi
  } >"$sf_spool/tmp/$sf_name" && sync "$sf_spool/tmp/$sf_name" &&
    mv -T "$sf_spool/tmp/$sf_name" "$sf_spool/new/$sf_name" && sync "$sf_spool/new"
}
sf_doing=setup
sf_failed() { sf_post '"failed":{"what":"'"$sf_doing"'","code":'"$1"'}'; }
# Slurm knows what SIGTERM meant; the job may be on its way back into the queue.
trap 'exit 143' TERM
trap 'sf_code=$?; [ "$sf_code" -eq 143 ] || sf_failed "$sf_code"' EXIT

sf_doing=cwd
cd -- '/home/u/it'"'"'s here' || exit 1
sf_doing=python
set +e  # setup lines may have set it
exec /opt/py/bin/python3 /home/u/.slurm_futures/lib/0123/slurm_futures_remote/entry.py task "$sf_spool" "$sf_batch"
sf_code=$?
trap - EXIT
sf_failed "$sf_code"
exit "$sf_code"
