#!/bin/bash -l
#SBATCH --time=02:00:00
#SBATCH --gpus=2  # one for each
#
# Written by slurm_futures: first what is run, then how. All names in it begin with sf_.

sf_setup='
module load cuda
export OUT='\''all of it'\'''

sf_teardown='rsync -a "$TMPDIR/" "$OUT"'

# ---- step 1
sf_checkpoint[1]=./prepared
sf_step_1=(python 'prepare it.py' --name $'it\'s')

# ---- step 2, at most 2 of its group at a time
sf_cwd[2]=./runs/1
sf_checkpoint[2]=./runs/1/done
sf_step_2=(eval '
python train.py
cp model $OUT')

# ---- step 3, at most 2 of its group at a time
sf_cwd[3]=/runs/2
sf_may_fail[3]=yes
sf_step_3=(eval 'python train.py || echo '\''none'\''')

# ---- step 4
sf_checkpoint[4]=$'/var/done\n'
sf_step_4=(eval 'sort < log')

# ---- how they are run

sf_pid=() sf_told=() sf_failure=() sf_gpu=()  # by the numbers of steps
sf_stopped=0 sf_unsure=false sf_ready= sf_nounset= sf_finished=
exec {sf_news}<> <(:)  # a pipe: the shells around steps tell the script what happens

sf_log() { printf 'slurm_futures: %s\n' "$*" >&2; }

sf_begin() {  # once the setup has been read
  case $- in *u*) sf_nounset=u ;; esac
  set +eu
  [ "$sf_ready" ] && return
  sf_log 'the setup is not valid shell code'
  sf_finish 2
}

sf_finish() {  # sf_finish CODE: run the teardown, whatever has happened before, and exit
  local sf_code=$1 sf_status=0
  [ "$sf_finished" ] && return
  sf_finished=yes
  set +eu
  if [ -n "$sf_teardown" ]; then
    (trap : HUP INT TERM && eval "$sf_teardown")
    sf_status=$?
    ((sf_status)) && sf_log "the teardown failed with exit status $sf_status"
  fi
  exit "$((sf_code ? sf_code : sf_status))"
}

sf_run() {  # sf_run LIMIT NUMBER...: run steps, at most LIMIT at a time; finish if one fails
  local sf_limit=$1 sf_what sf_number sf_code sf_patience
  shift
  sf_share_gpus
  while :; do
    while (($# && ${#sf_pid[@]} < sf_limit && !${#sf_failure[@]} && !sf_stopped)); do
      sf_start "$1"
      shift
    done
    ((${#sf_pid[@]})) || break
    sf_patience=1
    $sf_unsure && sf_patience=0.3
    if IFS=' ' read -r -t "$sf_patience" -u "$sf_news" sf_what sf_number sf_code; then
      "sf_$sf_what" "$sf_number" "$sf_code"
    else
      sf_look_around
    fi
  done
  for sf_code in "${sf_failure[@]}"; do sf_finish "$sf_code"; done  # the first in their order
  ((sf_stopped)) && sf_finish "$sf_stopped"
}

sf_share_gpus() {  # where several steps run at a time, and there are several GPUs: one for each
  local IFS=', '
  sf_gpus=()
  ((sf_limit > 1)) && sf_gpus=(${CUDA_VISIBLE_DEVICES-})
  ((${#sf_gpus[@]} > 1)) || sf_gpus=()
  ((${#sf_gpus[@]} && ${#sf_gpus[@]} < sf_limit)) && sf_limit=${#sf_gpus[@]}
}

sf_start() {  # sf_start NUMBER
  if ((${#sf_gpus[@]})); then
    sf_gpu[$1]=${sf_gpus[0]}
    sf_gpus=("${sf_gpus[@]:1}")
  fi
  sf_around "$1" <&0 &
  sf_pid[$1]=$!
}

sf_around() {  # sf_around NUMBER: the shell around a step
  local sf_code=0 sf_mark=${sf_checkpoint[$1]-} sf_signal=0
  trap 'sf_signal=129; sf_tell stopped '"$1"' 129' HUP
  trap 'sf_signal=130; sf_tell stopped '"$1"' 130' INT
  trap 'sf_signal=143; sf_tell stopped '"$1"' 143' TERM
  if [ -n "$sf_mark" ] && [ -e "$sf_mark" ]; then
    sf_log "step $1 is skipped: there is $sf_mark"
  else
    (sf_inside "$1") <&0 &
    sf_await "$!"
    sf_code=$?
    ((sf_code)) || sf_code=$sf_signal  # what a signal has cut short may look like a success
    if [ -n "$sf_mark" ] && ((!sf_code)); then
      mkdir -p -- "${sf_mark%/*}/" && touch -- "$sf_mark"
      sf_code=$?
    fi
  fi
  sf_tell ended "$1" "$sf_code"
  exit "$sf_code"
}

sf_inside() {  # sf_inside NUMBER: the step itself
  local sf_words="sf_step_$1[@]" sf_where=${sf_cwd[$1]-}
  trap - HUP INT QUIT  # which bash ignores in the background
  # The exit status is the program's, once it has ended, and no further line is run.
  trap 'sf_code=$?; exit "$((sf_code ? sf_code : 143))"' TERM
  exec {sf_news}>&-
  [ -z "${sf_gpu[$1]-}" ] || export CUDA_VISIBLE_DEVICES="${sf_gpu[$1]}"
  [ -z "$sf_where" ] || CDPATH= cd -- "$sf_where" || exit
  set --
  set -e"$sf_nounset"
  "${!sf_words}"
}

sf_await() {  # sf_await PID: wait for a child, which signals interrupt; return its exit status
  local sf_code sf_again
  while :; do
    wait "$1"
    sf_code=$?
    kill -0 "$1" 2>/dev/null || break
  done
  wait "$1" 2>/dev/null
  sf_again=$?
  # 127, or -1 in bash 5.2: there is no such child any more.
  if ((sf_again != 127 && sf_again >= 0)); then sf_code=$sf_again; fi
  return "$sf_code"
}

sf_tell() { printf '%s %d %d\n' "$@" >&"$sf_news"; }

sf_ended() {  # sf_ended NUMBER CODE
  [ "${sf_pid[$1]-}" ] || return
  wait "${sf_pid[$1]}" 2>/dev/null
  unset "sf_pid[$1]"
  [ "${sf_gpu[$1]-}" ] && sf_gpus+=("${sf_gpu[$1]}")
  if (($2)) && [ "${sf_may_fail[$1]-}" ]; then
    sf_log "step $1 failed with exit status $2, which it may"
  elif (($2)); then
    sf_failure[$1]=$2
    sf_log "step $1 failed with exit status $2"
  fi
}

sf_stopped() {  # sf_stopped NUMBER CODE: a signal has come, to a step or, number 0, to the script
  if (($1)); then sf_told[$1]=yes; else sf_unsure=true; fi
}

sf_look_around() {  # no news for a while
  local sf_number
  for sf_number in "${!sf_pid[@]}"; do
    if $sf_unsure && [ -z "${sf_told[$sf_number]-}" ]; then
      sf_signal_all "$(kill -l "$sf_stopped")" "${sf_pid[$sf_number]}"
    elif ! kill -0 "${sf_pid[$sf_number]}" 2>/dev/null; then
      sf_await "${sf_pid[$sf_number]}"
      sf_ended "$sf_number" "$?"
    fi
  done
  sf_unsure=false
}

sf_children() { cat "/proc/$1/task/"*/children 2>/dev/null; }

sf_signal_all() {  # sf_signal_all SIGNAL PID: to a process, and all that it has started
  local IFS=$' \t\n' sf_child sf_found
  sf_found=$(sf_children "$2")
  kill -s "$1" "$2" 2>/dev/null  # before its children: it starts no others
  for sf_child in $sf_found; do sf_signal_all "$1" "$sf_child"; done
}

sf_pass_on() {  # sf_pass_on SIGNAL PID...: to processes that handle it, or those they have started
  local IFS=$' \t\n' sf_process sf_signal=$1
  shift
  for sf_process; do
    if sf_handles "$sf_signal" "$sf_process"; then
      kill -s "$sf_signal" "$sf_process"
    else
      sf_pass_on "$sf_signal" $(sf_children "$sf_process")
    fi
  done
}

sf_handles() {  # sf_handles SIGNAL PID: whether a process catches it, or has blocked it to wait for
  local sf_name sf_mask sf_bit=$(($(kill -l "$1") - 1))
  while read -r sf_name sf_mask; do
    case $sf_name in
      # Without the 0 it would be the status from before the trap.
      SigBlk: | SigCgt:) ((0x$sf_mask >> sf_bit & 1)) && return 0 ;;
    esac
  done 2>/dev/null <"/proc/$2/status"
  return 1
}

trap 'sf_stopped=129; sf_tell stopped 0 129' HUP
trap 'sf_stopped=130; sf_tell stopped 0 130' INT
trap 'sf_stopped=143; sf_tell stopped 0 143' TERM
trap 'sf_pass_on USR1 "${sf_pid[@]}"' USR1
trap 'sf_pass_on USR2 "${sf_pid[@]}"' USR2
trap 'sf_finish "$?"' EXIT

# ---- the run

if ! type module >/dev/null 2>&1; then
  for sf_init in /etc/profile.d/modules.sh /etc/profile.d/lmod.sh /etc/profile.d/z00_lmod.sh \
      /usr/share/lmod/lmod/init/bash /usr/share/modules/init/bash; do
    if [ -r "$sf_init" ]; then . "$sf_init"; break; fi
  done
fi
if ! type conda 2>/dev/null | grep -q function && [ -n "${CONDA_EXE-}" ]; then
  . "${CONDA_EXE%/*/*}/etc/profile.d/conda.sh"
fi
eval "$sf_setup"$'\nsf_ready=yes'
sf_begin

sf_run 1 1
sf_run 2 2 3
sf_run 1 4
sf_finish 0
