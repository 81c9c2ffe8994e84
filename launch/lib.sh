# shellcheck shell=bash
# What the scripts of launch/ share; they source it.
set -euo pipefail

# As gamix_jax's exit codes: a mistake, not to be tried again; and a failure
# that will pass.
# shellcheck disable=SC2034  # for the scripts
readonly MISTAKE=2 AGAIN=75

# One line about what is wrong; ends the script.
fail() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
  exit "$MISTAKE"
}

((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) ||
  fail "needs bash 4.4 or later, and this is $BASH_VERSION."

# What stands at the top of the script.
usage() {
  awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"
}

dry() {
  [[ ${DRY_RUN:-0} != 0 ]]
}

# The words of a command as a shell reads them again.
quoted() {
  local text
  printf -v text '%q ' "$@"
  printf '%s' "${text% }"
}

# Runs a command; under DRY_RUN=1 prints it.
run() {
  if dry; then
    quoted "$@"
    printf '\n'
  else
    "$@"
  fi
}

# need NAME MEANING: that an environment variable is set.
need() {
  [[ -n ${!1:-} ]] || fail "set $1, $2; see --help."
}

# That $1, the value of $2, is a whole number of at least 1.
need_number() {
  [[ $1 =~ ^[1-9][0-9]*$ ]] || fail "$2=$1 must be a whole number from 1."
}

# The value of --workdir among a command's words.
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
    fail "--workdir=$dir is no folder; mount one that every host sees."
  printf '%s' "$dir"
}

# Whether the run in folder $1 is at its end. Every host can tell, though only
# process 0 says so: the last step's checkpoint is there.
run_is_done() {
  local steps
  [[ -f $1/config.json ]] || return 1
  steps=$("${PYTHON:-python3}" -c \
    'import json, sys; print(json.load(open(sys.argv[1]))["steps"])' \
    "$1/config.json") || return 1
  [[ -d $1/checkpoints/$steps ]]
}

# The newest step saved in folder $1, 0 for none.
newest_step() {
  local path newest=0
  for path in "$1"/checkpoints/*; do
    path=${path##*/}
    if [[ $path =~ ^[0-9]+$ ]] && ((path > newest)); then newest=$path; fi
  done
  printf '%s' "$newest"
}
