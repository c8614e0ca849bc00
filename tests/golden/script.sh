#!/bin/bash
#SBATCH --time=10
# a comment
#SBATCH -p cpu
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
ln -sT "job:$sf_job" "$sf_spool/claims/$sf_batch.$sf_task" 2>/dev/null
sf_owner=$(readlink "$sf_spool/claims/$sf_batch.$sf_task")
case $sf_owner in
  "job:$sf_job") ;;
  revoked) exit 0 ;;
  job:*) sf_post '"superseded":"'"$sf_owner"'"'; exit 0 ;;
  *) echo "slurm_futures: cannot claim this task in $sf_spool/claims" >&2; exit 1 ;;
esac
sf_post '"started":true' "$(readlink "/proc/$$/fd/1")" "$(readlink "/proc/$$/fd/2")"
# What this shell says of its child's death is no part of the job's output, but tells a death by
# signal from an exit status over 128. It does not mention HUP INT QUIT USR1 USR2 PIPE ALRM TERM
# XCPU: those that it has traps for, and SIGPIPE.
exec 3>&2 4<> <(:) 2>&4
sf_silent=' 129 130 131 138 140 141 142 143 152 '
sf_stopping=false
sf_stop() {
  sf_stopping=true
  :
  sf_post '"stopping":true' 2>&3
}
trap sf_stop TERM
for sf_signal in HUP INT QUIT USR1 USR2 ALRM URG XCPU; do
  trap 'kill -s '"$sf_signal"' "$sf_child" 2>/dev/null' "$sf_signal"
done
(
  trap - TERM HUP INT QUIT USR1 USR2 ALRM URG XCPU
  exec 2>&3 3>&- 4>&-
  cd -- /home/u/work || exit 1
export A='it'"'"'s'
export B=''
if ! type module >/dev/null 2>&1; then
  for sf_init in /etc/profile.d/modules.sh /etc/profile.d/lmod.sh /etc/profile.d/z00_lmod.sh \
      /usr/share/lmod/lmod/init/bash /usr/share/modules/init/bash; do
    if [ -r "$sf_init" ]; then . "$sf_init"; break; fi
  done
fi
if ! type conda 2>/dev/null | grep -q function && [ -n "${CONDA_EXE-}" ]; then
  . "${CONDA_EXE%/*/*}/etc/profile.d/conda.sh"
fi
module load gcc
ulimit -c 0

  exec /usr/bin/env '-S perl -w' /home/u/.slurm_futures/runs/r1/calls/3.calls
) <&0 &
sf_child=$!
# A signal ends wait early; the child is gone when it cannot be waited for any more.
while :; do
  wait "$sf_child"
  sf_code=$?
  kill -0 "$sf_child" 2>/dev/null || break
done
wait "$sf_child" 2>/dev/null
sf_again=$?
# 127, or -1 in bash 5.2 (measured): there is no such child any more.
if [ "$sf_again" -ne 127 ] && [ "$sf_again" -ge 0 ]; then sf_code=$sf_again; fi
# Slurm's SIGTERM goes to all processes, and the child may have ended by it before this shell's.
case $sf_code in 0) sf_doubt= ;; 143) sf_doubt='1 2 3 4 5 6 7 8 9 10' ;; *) sf_doubt='1 2' ;; esac
for _ in $sf_doubt; do
  if $sf_stopping; then break; fi
  sleep 0.1
done
sf_died=null
if [ "$sf_code" -gt 128 ] && { [[ $sf_silent == *" $sf_code "* ]] || read -r -t 0.1 _ <&4; }; then
  sf_died=$((sf_code - 128))
fi
sf_post '"ended":{"code":'"$sf_code"',"signal":'"$sf_died"',"term":'"$sf_stopping"'}' 2>&3
exit "$sf_code"
