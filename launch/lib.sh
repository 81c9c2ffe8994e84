# shellcheck shell=bash
# Functions that the scripts in launch/ source.
set -euo pipefail

# The exit codes of gamix_jax: a user error, which is not retried, and a
# transient failure.
# shellcheck disable=SC2034  # for the scripts
readonly USER_ERROR=2 RETRY=75

# Prints an error line and ends the script.
fail() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
  exit "$USER_ERROR"
}

((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) ||
  fail "bash $BASH_VERSION is too old; use 4.4 or later."

# Prints the comment at the top of the script.
usage() {
  awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"
}

dry() {
  [[ ${DRY_RUN:-0} != 0 ]]
}

# Quotes the words of a command for a shell.
quoted() {
  local text
  printf -v text '%q ' "$@"
  printf '%s' "${text% }"
}

# Runs a command; with DRY_RUN=1, prints it instead.
run() {
  if dry; then
    quoted "$@"
    printf '\n'
  else
    "$@"
  fi
}

# need NAME MEANING: fails unless an environment variable is set.
need() {
  [[ -n ${!1:-} ]] || fail "set $1, $2; see --help."
}

# Fails unless $1, the value of $2, is a whole number of at least 1.
need_number() {
  [[ $1 =~ ^[1-9][0-9]*$ ]] || fail "$2=$1 must be a whole number, at least 1."
}

# Prints the value of --workdir in a command's arguments.
workdir_of() {
  local word dir=
  while (($#)); do
    word=$1
    shift
    case $word in
      --workdir=* | -workdir=*) dir=${word#*=} ;;
      --workdir | -workdir) dir=${1:-} ;;
    esac
  done
  [[ -n $dir ]] || fail "give --workdir=DIR, a folder that every host sees."
  [[ $dir != *://* ]] ||
    fail "--workdir=$dir is not a folder; mount one that every host sees."
  printf '%s' "$dir"
}

# Succeeds if the run in folder $1 has finished, which every host can check: the
# last step's checkpoint exists.
run_is_done() {
  local steps
  [[ -f $1/config.json ]] || return 1
  steps=$("${PYTHON:-python3}" -c \
    'import json, sys; print(json.load(open(sys.argv[1]))["steps"])' \
    "$1/config.json") || return 1
  [[ -d $1/checkpoints/$steps ]]
}

# Prints the newest step saved in folder $1, or 0.
newest_step() {
  local path newest=0
  for path in "$1"/checkpoints/*; do
    path=${path##*/}
    if [[ $path =~ ^[0-9]+$ ]] && ((path > newest)); then newest=$path; fi
  done
  printf '%s' "$newest"
}
