#!/usr/bin/env bash
# Trains on GKE, as a JobSet with one pod per host.
#
#   export NAME=vae IMAGE=REGION-docker.pkg.dev/P/R/gamix_jax:tpu CLAIM=runs
#   export HOSTS=4 TPU=tpu-v6e-slice TOPOLOGY=4x4 CHIPS=4
#   launch/gke/jobset.sh apply tpu --config=... --workdir=/workdir/a
#   launch/gke/jobset.sh render tpu FLAGS ...     prints the YAML
#   launch/gke/jobset.sh xpk --config=... --workdir=/workdir/a
#   launch/gke/jobset.sh status
#   launch/gke/jobset.sh logs [--follow]          logs of process 0
#   launch/gke/jobset.sh delete --force           the run saves first
#
# The cluster needs the JobSet controller and CLAIM, a ReadWriteMany
# PersistentVolumeClaim (Filestore), which is mounted at /workdir.
#
# NAME, IMAGE    of the JobSet; the image built from launch/Dockerfile
# CLAIM          name of the claim
# HOSTS          number of pods
# TPU, TOPOLOGY, CHIPS    for tpu: GKE's accelerator and topology labels, and
#                         chips per host
# GPU, GPUS      for gpu: GKE's accelerator label, such as nvidia-l4, and
#                GPUs per host
# SPOT=1         use spot nodes
# MAX_RESTARTS   default: 100
# CLUSTER, TYPE  for xpk: a cluster created by xpk, and the type, such as v6e-16
# DRY_RUN=1      print the commands instead of running them
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

here=$(dirname "${BASH_SOURCE[0]}")
export MAX_RESTARTS=${MAX_RESTARTS:-100} SPOT=${SPOT:-0}

render() {
  local kind=${1:-}
  case $kind in
    tpu | gpu) shift ;;
    *) fail "give tpu or gpu, then the training's flags; see --help." ;;
  esac
  check_workdir "$@"
  "${PYTHON:-python3}" "$here/render.py" "$here/jobset_$kind.yaml" "$@"
}

check_workdir() {
  local workdir
  workdir=$(workdir_of "$@")
  [[ $workdir == /workdir/* ]] ||
    fail "--workdir=$workdir must be in /workdir, where CLAIM is mounted."
}

apply() {
  local text
  text=$(render "$@")
  if dry; then
    run kubectl apply --filename=-
    printf '%s\n' "$text"
  else
    kubectl apply --filename=- <<<"$text"
  fi
}

xpk_create() {
  need CLUSTER "a cluster created by xpk"
  need TYPE "the TPU type, such as v6e-16"
  need IMAGE "the image built from launch/Dockerfile"
  check_workdir "$@"
  run xpk workload create --cluster="$CLUSTER" --workload="$NAME" \
    --tpu-type="$TYPE" --num-slices=1 --docker-image="$IMAGE" \
    --max-restarts="$MAX_RESTARTS" --restart-on-exit-codes=75 \
    --termination-grace-period-seconds=300 \
    --command="launch/until_done.sh --once python -m gamix_jax.main --multihost $(quoted "$@")"
}

verb=${1:---help}
if (($#)); then shift; fi
if [[ $verb == --help || $verb == -h ]]; then usage && exit 0; fi
need NAME "the JobSet's name"
case $verb in
  render) render "$@" ;;
  apply) apply "$@" ;;
  xpk) xpk_create "$@" ;;
  status)
    run kubectl get jobset "$NAME"
    run kubectl get pods --output=wide \
      --selector="jobset.sigs.k8s.io/jobset-name=$NAME"
    ;;
  logs)
    follow=()
    case ${1:-} in
      "") ;;
      --follow) follow=(--follow) ;;
      *) fail "logs $1: unknown option; see --help." ;;
    esac
    run kubectl logs ${follow[@]+"${follow[@]}"} --tail=50 \
      --selector="jobset.sigs.k8s.io/jobset-name=$NAME,batch.kubernetes.io/job-completion-index=0"
    ;;
  delete)
    [[ ${1:-} == --force ]] ||
      fail "delete stops and removes the JobSet $NAME; add --force to confirm."
    run kubectl delete jobset "$NAME"
    ;;
  *) fail "$verb: unknown command; see --help." ;;
esac
