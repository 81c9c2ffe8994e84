#!/usr/bin/env bash
# Starts a training again until it is at its end.
#
#   launch/until_done.sh [--once] [--pause=30] COMMAND ... --workdir=DIR ...
#
# On several hosts start it on each. Its own exit codes:
#   0   the run is at its end
#   2   a mistake, which starting again does not fix
#   75  the run is not at its end, and the same command continues it: this
#       script was asked to stop (SIGTERM, Ctrl-C), or was to try --once
#   any other: the command failed so GIVE_UP times (3) without a new
#       checkpoint between; the code is the command's
#
# That gamix_jax ends with 0 says only that all is saved: it does so on SIGTERM
# too, on every host when one had it. So the end is told by the last step's
# checkpoint.
#
# --once      do not start again; leave that to who reads the exit code
# --pause=S   seconds before the next start
# DRY_RUN=1   print what would be run
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

once=0 pause=30
while (($#)); do
  case $1 in
    --help | -h) usage && exit 0 ;;
    --once) once=1 ;;
    --pause=*) pause=${1#*=} ;;
    -*) fail "$1 is no option; see --help." ;;
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
asked=0 interrupted=0
ask() {
  asked=1 interrupted=1
  if [[ -n $child ]]; then kill -TERM "$child" 2>/dev/null || true; fi
}
trap ask TERM INT

# The exit code of a command, which signals are passed on to.
attempt() {
  local code
  "$@" &
  child=$!
  if ((asked)); then kill -TERM "$child" 2>/dev/null || true; fi
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
  if ((code == MISTAKE)); then exit "$MISTAKE"; fi
  if ((code == 0 || code == AGAIN)); then
    if run_is_done "$dir"; then exit 0; fi
    if [[ $code == 0 && ! -f $dir/config.json ]]; then
      fail "no config.json in $dir: is it the folder that all hosts share?"
    fi
    failures=0
    if ((asked || once)); then exit "$AGAIN"; fi
  else
    if ((asked || once)); then exit "$code"; fi
    if (($(newest_step "$dir") > before)); then failures=0; fi
    failures=$((failures + 1))
    if ((failures >= ${GIVE_UP:-3})); then
      say "exit code $code, $failures times without a new checkpoint."
      exit "$code"
    fi
  fi
  say "exit code $code, not at its end; again in $pause s."
  attempt sleep "$pause" || true
  if ((asked)); then exit "$AGAIN"; fi
done
