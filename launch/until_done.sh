#!/usr/bin/env bash
# Restarts a training until it has finished.
#
#   launch/until_done.sh [--once] [--pause=30] COMMAND ... --workdir=DIR ...
#
# With several hosts, start it on each. Exit codes:
#   0   the run has finished
#   2   a user error, which a restart does not fix
#   75  the run has not finished, and the same command resumes it: this script
#       was stopped (SIGTERM, Ctrl-C), or started with --once
#   any other: the command's exit code, after GIVE_UP failures (3) without a new
#       checkpoint in between
#
# Exit code 0 of gamix_jax only means that everything is saved: after a SIGTERM
# to one host, all hosts exit with 0. So a run has finished once its last step's
# checkpoint exists.
#
# --once      do not restart; leave that to the caller
# --pause=S   seconds before the next start
# DRY_RUN=1   print the command instead of running it
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

once=0 pause=30
while (($#)); do
  case $1 in
    --help | -h) usage && exit 0 ;;
    --once) once=1 ;;
    --pause=*) pause=${1#*=} ;;
    -*) fail "$1: unknown option; see --help." ;;
    *) break ;;
  esac
  shift
done
(($#)) || fail "give the command to run; see --help."
[[ $pause =~ ^[0-9]+$ ]] || fail "--pause=$pause must be whole seconds."
dir=$(workdir_of "$@")
if dry; then
  run "$@"
  exit 0
fi

say() { printf 'until_done.sh: %s\n' "$*" >&2; }

child=
stop_requested=0 interrupted=0
request_stop() {
  stop_requested=1 interrupted=1
  if [[ -n $child ]]; then kill -TERM "$child" 2>/dev/null || true; fi
}
trap request_stop TERM INT

# Runs a command, forwards signals to it, and returns its exit code.
attempt() {
  local code
  "$@" &
  child=$!
  if ((stop_requested)); then kill -TERM "$child" 2>/dev/null || true; fi
  while :; do
    interrupted=0 code=0
    wait "$child" || code=$?
    ((interrupted)) || break
  done
  child=
  return "$code"
}

failures=0
while :; do
  before=$(newest_step "$dir")
  code=0
  attempt "$@" || code=$?
  if ((code == USER_ERROR)); then exit "$USER_ERROR"; fi
  if ((code == 0 || code == RETRY)); then
    if run_is_done "$dir"; then exit 0; fi
    if [[ $code == 0 && ! -f $dir/config.json ]]; then
      fail "no config.json in $dir: is it a folder that all hosts share?"
    fi
    failures=0
    if ((stop_requested || once)); then exit "$RETRY"; fi
  else
    if ((stop_requested || once)); then exit "$code"; fi
    if (($(newest_step "$dir") > before)); then failures=0; fi
    failures=$((failures + 1))
    if ((failures >= ${GIVE_UP:-3})); then
      say "exit code $code, $failures failures without a new checkpoint."
      exit "$code"
    fi
  fi
  say "exit code $code, not finished; restarting in $pause s."
  attempt sleep "$pause" || true
  if ((stop_requested)); then exit "$RETRY"; fi
done
