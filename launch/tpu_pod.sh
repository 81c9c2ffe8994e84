#!/usr/bin/env bash
# Trains on a Cloud TPU VM or a TPU pod, through gcloud's ssh.
#
#   export NAME=vae ZONE=us-east5-b TYPE=v6e-16 RUNTIME=v2-alpha-tpuv6e
#   export SHARE=10.0.0.2:/vol1
#   launch/tpu_pod.sh create [--spot] [--queued]
#   launch/tpu_pod.sh setup
#   launch/tpu_pod.sh run --config=configs/celeba_hq.py --workdir=/mnt/gamix/a
#   launch/tpu_pod.sh status
#   launch/tpu_pod.sh logs [--worker=0] [--follow]
#   launch/tpu_pod.sh stop
#   launch/tpu_pod.sh delete --force [--queued]
#
# create   creates the TPU; with --queued, as a queued resource, which waits for
#          capacity: see `status`. --spot is cheaper and can be preempted.
# setup    installs this checkout's last commit, Python 3.12 and the packages on
#          all workers, and mounts SHARE at /mnt/gamix, also after a reboot.
# run      trains on all workers, under until_done.sh in a systemd service: it
#          does not need this terminal, and restarts after a failure or a boot.
# stop     stops all workers after they have saved; `run` resumes.
# delete   deletes the TPU and its disks, but not SHARE.
#
# NAME, ZONE       of the TPU
# PROJECT          default: gcloud's project
# TYPE, RUNTIME    accelerator type and software version, for create
# SHARE            HOST:/PATH of an NFS share (Filestore), for setup. Required
#                  for several workers; without it, a single worker keeps its
#                  runs on its own disk, which `delete` deletes
# WAIT             how long --queued waits, e.g. 6h; default: forever
# DRY_RUN=1        print the commands instead of running them
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

readonly MOUNT=/mnt/gamix SERVICE=gamix_jax

gcloud_tpus() {
  run gcloud compute tpus "$@" --zone="$ZONE" \
    ${PROJECT:+"--project=$PROJECT"}
}

# on WORKERS COMMAND: runs a shell command on workers.
on() {
  gcloud_tpus tpu-vm ssh "$NAME" --worker="$1" --command="$2"
}

create() {
  local queued=0 options=()
  while (($#)); do
    case $1 in
      --spot) options+=(--spot) ;;
      --queued) queued=1 ;;
      *) fail "create $1: unknown option; see --help." ;;
    esac
    shift
  done
  need TYPE "the accelerator type, such as v6e-16"
  need RUNTIME "the software version, such as v2-alpha-tpuv6e"
  options+=("--accelerator-type=$TYPE")
  if ((queued)); then
    if [[ -n ${WAIT:-} ]]; then options+=("--valid-until-duration=$WAIT"); fi
    gcloud_tpus queued-resources create "$NAME" --node-id="$NAME" \
      "${options[@]}" "--runtime-version=$RUNTIME"
  else
    gcloud_tpus tpu-vm create "$NAME" "${options[@]}" "--version=$RUNTIME"
  fi
}

setup() {
  (($# == 0)) || fail "setup $1: unknown option; see --help."
  local mount="" archive="${TMPDIR:-/tmp}/$SERVICE.tar.gz"
  if [[ -n ${SHARE:-} ]]; then
    [[ $SHARE =~ ^[A-Za-z0-9.:_-]+:/[A-Za-z0-9._/-]*$ ]] ||
      fail "SHARE=$SHARE must be HOST:/PATH."
    # With a longer cache, until_done.sh could miss the last checkpoint.
    local line="$SHARE $MOUNT nfs defaults,_netdev,hard,actimeo=5 0 0"
    mount="sudo mkdir -p $MOUNT
grep -qxF $(quoted "$line") /etc/fstab ||
  echo $(quoted "$line") | sudo tee -a /etc/fstab
mountpoint -q $MOUNT || sudo mount $MOUNT
sudo chmod 1777 $MOUNT"
  fi
  local root
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  # The VM images have Python 3.10; uv installs a newer one.
  run git -C "$root" archive --format=tar.gz --output="$archive" HEAD
  gcloud_tpus tpu-vm scp "$archive" "$NAME:$SERVICE.tar.gz" --worker=all
  on all "set -euo pipefail
sudo apt-get -qq update
sudo apt-get -qq install -y nfs-common python3-pip
$mount
python3 -m pip install --quiet --user uv
mkdir -p ~/$SERVICE
tar -xzf ~/$SERVICE.tar.gz -C ~/$SERVICE
[ -x ~/venv/bin/python ] || ~/.local/bin/uv venv --python 3.12 ~/venv
~/.local/bin/uv pip install --quiet --python ~/venv/bin/python \\
  -e \"\$HOME/${SERVICE}[tpu]\"
~/venv/bin/python -c 'import gamix_jax; print(gamix_jax.__version__)'"
}

train() {
  workdir_of "$@" >/dev/null
  local script unit
  # A separate script, since systemd has its own quoting rules; the unit then
  # needs no quotes.
  script="#!/bin/bash
cd ~/$SERVICE || exit 2
export PYTHON=~/venv/bin/python
exec launch/until_done.sh \"\$PYTHON\" -m gamix_jax.main --multihost $(quoted "$@")"
  unit="[Unit]
Description=gamix_jax training
After=network-online.target remote-fs.target
Wants=network-online.target
[Service]
User=@USER@
ExecStart=/bin/bash @HOME@/$SERVICE.run
StandardOutput=append:@HOME@/$SERVICE.log
StandardError=inherit
KillMode=mixed
TimeoutStopSec=300
SuccessExitStatus=75
[Install]
WantedBy=multi-user.target"
  on all "set -euo pipefail
[ -x ~/venv/bin/python ] || { echo 'run setup first' >&2; exit 2; }
if systemctl is-active --quiet $SERVICE; then
  echo 'a training is already running; stop it first' >&2; exit 2
fi
printf '%s\\n' $(quoted "$script") > ~/$SERVICE.run
printf '%s\\n' $(quoted "$unit") |
  sed -e \"s|@USER@|\$(id -un)|\" -e \"s|@HOME@|\$HOME|\" |
  sudo tee /etc/systemd/system/$SERVICE.service > /dev/null
sudo systemctl daemon-reload
sudo systemctl enable --quiet $SERVICE
sudo systemctl start $SERVICE"
}

status() {
  (($# == 0)) || fail "status $1: unknown option; see --help."
  gcloud_tpus queued-resources list "--filter=name~/$NAME\$"
  gcloud_tpus tpu-vm describe "$NAME" '--format=value(state,health)'
  on all "echo \"\$(hostname): \$(systemctl is-active $SERVICE)\"
tail -n 1 ~/$SERVICE.log"
}

logs() {
  local worker=0 follow=
  while (($#)); do
    case $1 in
      --worker=all) worker=all ;;
      --worker=*)
        worker=${1#*=}
        [[ $worker =~ ^[0-9]+$ ]] || fail "$1 must be a number or all."
        ;;
      --follow) follow=" --follow" ;;
      *) fail "logs $1: unknown option; see --help." ;;
    esac
    shift
  done
  on "$worker" "tail -n 50$follow ~/$SERVICE.log"
}

stop() {
  (($# == 0)) || fail "stop $1: unknown option; see --help."
  on all "sudo systemctl disable --now $SERVICE"
}

delete() {
  local force=0 queued=0
  while (($#)); do
    case $1 in
      --force) force=1 ;;
      --queued) queued=1 ;;
      *) fail "delete $1: unknown option; see --help." ;;
    esac
    shift
  done
  ((force)) || fail "delete removes the TPU $NAME in $ZONE and its disks," \
    "with the runs on them; add --force to confirm."
  if ((queued)); then
    gcloud_tpus queued-resources delete "$NAME" --force --quiet
  else
    gcloud_tpus tpu-vm delete "$NAME" --quiet
  fi
}

verb=${1:---help}
if (($#)); then shift; fi
case $verb in
  --help | -h) usage && exit 0 ;;
  create | setup | run | status | logs | stop | delete) ;;
  *) fail "$verb: unknown command; see --help." ;;
esac
need NAME "the TPU's name"
need ZONE "the TPU's zone"
[[ $NAME =~ ^[a-z][-a-z0-9]*$ ]] ||
  fail "NAME=$NAME must be lower case letters, digits and -."
if [[ $verb == run ]]; then verb=train; fi
"$verb" "$@"
