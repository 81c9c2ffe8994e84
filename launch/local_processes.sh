#!/usr/bin/env bash
# Trains with several CPU processes on this machine: a pod in small, to try
# what depends on their number.
#
#   launch/local_processes.sh [--processes=2] [--devices=1] FLAGS ...
#
# FLAGS are those of python -m gamix_jax.main; --workdir=DIR among them.
# Ctrl-C or SIGTERM is passed on: all save the same step and end. Twice, it
# kills. Exit code: 0 if all ended with 0, else 2 if any did with 2, else any
# other failure, else 75 (start it again).
#
# --processes=N  how many
# --devices=M    CPU devices that JAX makes in each
# PORT           where process 0 listens; a free one if not set
# LOGS           a folder for process_0.log ...; if not set, all is printed
#                here, each line after its process's number
# PYTHON         the interpreter; python if not set
# DRY_RUN=1      print what would be run
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
asked=0
# shellcheck disable=SC2329  # `trap` calls it
ask() {
  local signal=TERM
  if ((asked)); then signal=KILL; fi
  asked=$((asked + 1))
  # One that has ended cannot be signalled, and need not.
  if ((${#pids[@]})); then kill -"$signal" "${pids[@]}" 2>/dev/null || true; fi
}
trap ask TERM INT

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
if ((asked)); then kill -TERM "${pids[@]}" 2>/dev/null || true; fi

result=0
for pid in ${pids[@]+"${pids[@]}"}; do
  while :; do
    before=$asked code=0
    wait "$pid" || code=$?
    ((asked == before)) && break
  done
  case $result:$code in
    *:0 | "$MISTAKE":*) ;;
    *:"$MISTAKE" | 0:* | "$AGAIN":*) result=$code ;;
  esac
done
for pid in ${writers[@]+"${writers[@]}"}; do wait "$pid" || true; done
exit "$result"
