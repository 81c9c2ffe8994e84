#!/usr/bin/env bash
# Trains with several CPU processes on this machine, to try multi-process
# training without a cluster.
#
#   launch/local_processes.sh [--processes=2] [--devices=1] FLAGS ...
#
# FLAGS are those of python -m gamix_jax.main and must include --workdir=DIR.
# Ctrl-C or SIGTERM is forwarded: all processes save the same step and exit. A
# second one kills them. Exit code: 0 if all exited with 0; else 2 if any exited
# with 2; else any other failure; else 75 (run it again).
#
# --processes=N  number of processes
# --devices=M    CPU devices per process
# PORT           port of the coordinator; default: a free one
# LOGS           a folder for process_0.log ...; default: print everything
#                here, with the process number before each line
# PYTHON         the interpreter; default: python
# DRY_RUN=1      print the commands instead of running them
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

processes=2 devices=1
while (($#)); do
  case $1 in
    --help | -h) usage && exit 0 ;;
    --processes=*) processes=${1#*=} ;;
    --devices=*) devices=${1#*=} ;;
    *) break ;;
  esac
  shift
done
need_number "$processes" --processes
need_number "$devices" --devices
workdir_of "$@" >/dev/null
python=${PYTHON:-python}
port=${PORT:-$("$python" -c \
  'import socket; s = socket.socket(); s.bind(("localhost", 0))
print(s.getsockname()[1])')}
flags=${XLA_FLAGS:-}
flags+="${flags:+ }--xla_force_host_platform_device_count=$devices"

pids=() writers=()
stop_signals=0
# shellcheck disable=SC2329  # `trap` calls it
forward_signal() {
  local signal=TERM
  if ((stop_signals)); then signal=KILL; fi
  stop_signals=$((stop_signals + 1))
  # kill fails for processes that have ended.
  if ((${#pids[@]})); then kill -"$signal" "${pids[@]}" 2>/dev/null || true; fi
}
trap forward_signal TERM INT

prefixed() {
  local line
  trap '' TERM INT
  while IFS= read -r line || [[ -n $line ]]; do
    printf '[%s] %s\n' "$1" "$line"
  done
}

if [[ -n ${LOGS:-} ]]; then run mkdir -p "$LOGS"; fi
for ((i = 0; i < processes; i++)); do
  command=(
    env JAX_PLATFORMS=cpu "XLA_FLAGS=$flags"
    "$python" -m gamix_jax.main "$@"
    "--coordinator=localhost:$port"
    "--num_processes=$processes" "--process_id=$i"
  )
  if dry; then
    run "${command[@]}"
    continue
  fi
  if [[ -n ${LOGS:-} ]]; then
    exec {out}>>"$LOGS/process_$i.log"
  else
    exec {out}> >(prefixed "$i")
    writers+=($!)
  fi
  "${command[@]}" >&"$out" 2>&1 &
  pids+=($!)
  exec {out}>&-
done
if ((stop_signals)); then kill -TERM "${pids[@]}" 2>/dev/null || true; fi

result=0
for pid in ${pids[@]+"${pids[@]}"}; do
  while :; do
    before=$stop_signals code=0
    wait "$pid" || code=$?
    ((stop_signals == before)) && break
  done
  case $result:$code in
    *:0 | "$USER_ERROR":*) ;;
    *:"$USER_ERROR" | 0:* | "$RETRY":*) result=$code ;;
  esac
done
for pid in ${writers[@]+"${writers[@]}"}; do wait "$pid" || true; done
exit "$result"
