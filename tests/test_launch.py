"""The launch scripts, without a cloud.

Their commands are compared to tests/golden/launch; with GOLDEN=write in the
environment, the golden files are rewritten (and the tests fail, as a reminder
to look at the diff). The clouds' programs are replaced by recording programs of
the same name, first in PATH. JobSets are checked against the types of the
Kubernetes client, and unknown keys are refused.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml
from program import ROOT, SMALL

from gamix_jax.errors import UserError

LAUNCH = ROOT / "launch"
GOLDEN = ROOT / "tests" / "golden" / "launch"
SCRIPTS = sorted(p for p in LAUNCH.rglob("*") if p.suffix in (".sh", ".sbatch"))
RUNNABLE = [p for p in SCRIPTS if p.name != "lib.sh"]
# A flag with special characters of shells, systemd, YAML and Kubernetes.
NASTY = "--config.data.source=folder:/a b/$(touch x)'\"%h;&|*~\\#{é: ${HOME}"


def clean_env():
  """Returns the environment without the variables of a launch."""
  kept = {k: os.environ[k] for k in ("PATH", "HOME") if k in os.environ}
  return kept | dict(TMPDIR="/tmp", LC_ALL="C.UTF-8")


def sh(script, *args, env=(), cwd=ROOT):
  return subprocess.run(
    ["bash", str(LAUNCH / script), *args],
    env=clean_env() | dict(env),
    cwd=cwd,
    capture_output=True,
    text=True,
    timeout=60,
    check=False,
  )


# ------------------------------------------------------------ linters


def tool(name):
  """Finds a linter, in the environment that runs the tests or in PATH."""
  folder = os.path.dirname(sys.executable)
  return shutil.which(name, path=f"{folder}:{os.environ['PATH']}")


def lint(name, *args):
  if not tool(name):
    pytest.skip(f"{name} is not installed")
  ran = subprocess.run(
    [tool(name), *map(str, args)],
    capture_output=True,
    text=True,
    check=False,
  )
  assert ran.returncode == 0, ran.stdout + ran.stderr


def test_shellcheck():
  assert len(SCRIPTS) >= 6
  lint("shellcheck", "-x", "-P", "SCRIPTDIR", "-P", LAUNCH, *SCRIPTS)


def test_hadolint():
  lint("hadolint", LAUNCH / "Dockerfile")


def test_the_image_is_given_what_it_copies():
  text = (LAUNCH / "Dockerfile").read_text()
  ignored = (ROOT / ".dockerignore").read_text().splitlines()
  copied = [
    w for x in re.findall(r"^COPY (.*) \S+$", text, re.M) for w in x.split()
  ]
  assert copied
  for name in copied:
    assert (ROOT / name).exists(), name
    assert f"!{name}" in ignored, name
  extras = re.findall(r"\[(\w+)\]'", text)
  assert extras == ["cuda", "tpu"]
  for name in extras:
    assert re.search(
      rf"^{name} = \[", (ROOT / "pyproject.toml").read_text(), re.M
    )


@pytest.mark.parametrize("script", RUNNABLE, ids=lambda p: p.name)
def test_help(script):
  ran = sh(script, "--help")
  assert (ran.returncode, ran.stderr) == (0, "")
  assert "DRY_RUN=1" in ran.stdout
  assert "shellcheck" not in ran.stdout


# ------------------------------------------------------------ dry runs


POD = dict(
  NAME="vae",
  ZONE="us-east5-b",
  TYPE="v6e-16",
  RUNTIME="v2-alpha-tpuv6e",
  SHARE="10.0.0.2:/vol1",
)
SET = dict(
  NAME="vae",
  IMAGE="example.com/p/gamix_jax:tpu",
  CLAIM="runs",
  HOSTS="4",
  TPU="tpu-v6e-slice",
  TOPOLOGY="4x4",
  CHIPS="4",
  GPU="nvidia-l4",
  GPUS="2",
)
FLAGS = ("--config=configs/celeba.py", "--workdir=/workdir/a b", NASTY)
CASES = {
  "local": (
    "local_processes.sh",
    ("--processes=2", "--devices=4", *FLAGS),
    dict(PORT="12345"),
  ),
  "until_done": (
    "until_done.sh",
    ("python", "-m", "gamix_jax.main", *FLAGS),
    {},
  ),
  "slurm": ("slurm.sbatch", FLAGS, dict(SLURM_JOB_ID="7")),
  "pod_create": ("tpu_pod.sh", ("create",), POD | dict(PROJECT="p")),
  "pod_create_queued": (
    "tpu_pod.sh",
    ("create", "--queued", "--spot"),
    POD | dict(WAIT="6h"),
  ),
  "pod_setup": ("tpu_pod.sh", ("setup",), POD),
  "pod_run": ("tpu_pod.sh", ("run", *FLAGS), POD),
  "pod_status": ("tpu_pod.sh", ("status",), POD),
  "pod_logs": ("tpu_pod.sh", ("logs", "--worker=3", "--follow"), POD),
  "pod_stop": ("tpu_pod.sh", ("stop",), POD),
  "pod_delete": ("tpu_pod.sh", ("delete", "--force"), POD),
  "pod_delete_queued": ("tpu_pod.sh", ("delete", "--queued", "--force"), POD),
  "gke_tpu": ("gke/jobset.sh", ("apply", "tpu", *FLAGS), SET),
  "gke_gpu": ("gke/jobset.sh", ("apply", "gpu", *FLAGS), SET | dict(SPOT="1")),
  "gke_xpk": (
    "gke/jobset.sh",
    ("xpk", *FLAGS),
    SET | dict(CLUSTER="c", TYPE="v6e-16"),
  ),
  "gke_status": ("gke/jobset.sh", ("status",), SET),
  "gke_logs": ("gke/jobset.sh", ("logs", "--follow"), SET),
  "gke_delete": ("gke/jobset.sh", ("delete", "--force"), SET),
}


@pytest.mark.parametrize("name", CASES)
def test_dry_run(name, tmp_path):
  """Prints what it would do, and does nothing."""
  script, args, env = CASES[name]
  programs(tmp_path, "gcloud", "kubectl", "xpk", "srun", "scontrol", "git")
  path = dict(PATH=f"{tmp_path}:{os.environ['PATH']}", DRY_RUN="1")
  ran = sh(script, *args, env=env | path)
  assert (ran.returncode, ran.stderr) == (0, "")
  assert calls(tmp_path) == []
  text = ran.stdout.replace(str(ROOT), "ROOT")
  golden = GOLDEN / f"{name}.txt"
  if os.environ.get("GOLDEN") == "write":
    GOLDEN.mkdir(exist_ok=True)
    golden.write_text(text)
    pytest.fail(f"{golden} is written; look at it")
  assert text == golden.read_text()


README = (LAUNCH / "README.md").read_text()


@pytest.mark.parametrize("title", re.findall("^## (.*)$", README, re.M))
def test_readme_commands(title):
  """Runs the commands of a section in order, as dry runs."""
  text = README.split(f"## {title}\n")[1].split("\n## ")[0]
  for name in re.findall(r"\]\(([^:)]+)\)", text):
    assert (LAUNCH / name).exists(), name
  lines = [
    line
    for block in re.findall(r"```bash\n(.*?)```", text, re.S)
    for line in block.splitlines()
    if re.match(r"(export|launch/|DRY_RUN=1 )", line)
  ]
  ran = subprocess.run(
    ["bash", "-euc", "\n".join(["export DRY_RUN=1", *lines])],
    env=clean_env() | dict(PYTHON=sys.executable),
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
    timeout=60,
  )
  assert ran.returncode == 0, ran.stderr
  for config in re.findall(r"--config=(\S+)", text):
    assert config == "..." or (ROOT / config).is_file(), config
  for key in re.findall(r"--config\.([\w.]+)", text):
    from gamix_jax import config as configs

    assert key in configs.flat(configs.base()), key


def test_every_golden_file_has_its_case():
  assert {p.stem for p in GOLDEN.iterdir()} == set(CASES)


RECORD = """#!{python}
import json, os, sys
here = os.path.dirname(os.path.abspath(__file__))
name = os.path.basename(__file__)
with open(os.path.join(here, "calls"), "a") as f:
  f.write(json.dumps([name, *sys.argv[1:]]) + "\\n")
"""


def programs(folder, *names, then=""):
  """Creates programs that record how they are called."""
  for name in names:
    (folder / name).write_text(RECORD.format(python=sys.executable) + then)
    (folder / name).chmod(0o755)


def calls(folder):
  """[[program, argument, ...], ...]"""
  if not (folder / "calls").exists():
    return []
  return [json.loads(x) for x in (folder / "calls").read_text().splitlines()]


@pytest.mark.parametrize(
  ("name", "changes", "words"),
  [
    ("pod_delete", dict(args=("delete",)), "add --force"),
    ("gke_delete", dict(args=("delete",)), "add --force"),
    ("pod_create", dict(TYPE=""), "set TYPE"),
    ("pod_create", dict(NAME="a b"), "NAME=a b"),
    ("pod_create", dict(args=("create", "--spto")), "--spto"),
    ("pod_setup", dict(SHARE="x; rm y"), "must be HOST:/PATH"),
    ("pod_run", dict(args=("run",)), "--workdir"),
    ("pod_run", dict(args=("run", "--workdir=gs://b/x")), "is not a folder"),
    ("pod_logs", dict(args=("logs", "--worker=1;x")), "a number or all"),
    ("pod_stop", dict(args=("halt",)), "unknown command"),
    ("local", dict(args=("--processes=0", "--workdir=/x")), "--processes=0"),
    ("until_done", dict(args=("true",)), "--workdir"),
    ("until_done", dict(args=("--twice", "true")), "--twice"),
    ("slurm", dict(args=()), "--workdir"),
    ("gke_tpu", dict(TOPOLOGY="2x4"), "is 8 chips"),
    ("gke_tpu", dict(HOSTS="four"), "set HOSTS"),
    ("gke_tpu", dict(NAME="Vae\n"), "set NAME"),
    ("gke_tpu", dict(IMAGE='x"\n  a: b'), "set IMAGE"),
    ("gke_tpu", dict(args=("apply", "tpu", "--workdir=/tmp/x")), "/workdir"),
    (
      "gke_gpu",
      dict(args=("apply", "cpu", "--workdir=/workdir")),
      "tpu or gpu",
    ),
    ("gke_xpk", dict(CLUSTER=""), "set CLUSTER"),
  ],
)
def test_refused(name, changes, words, tmp_path):
  """With a short message and exit code 2, before anything is called."""
  script, args, env = CASES[name]
  changes = dict(changes)
  args = changes.pop("args", args)
  programs(tmp_path, "gcloud", "kubectl", "xpk", "srun", "scontrol")
  path = dict(PATH=f"{tmp_path}:{os.environ['PATH']}")
  ran = sh(script, *args, env=env | path | changes)
  assert ran.returncode == 2, ran.stdout + ran.stderr
  assert words in ran.stderr
  assert ran.stderr.count("\n") <= 2
  assert calls(tmp_path) == []


def test_a_workdir_is_a_folder(tmp_path, monkeypatch):
  """gs://... would become a folder of that name."""
  from configs import digits
  from gamix_jax.training import loop

  monkeypatch.chdir(tmp_path)
  with pytest.raises(UserError, match="is an address"):
    loop.train(digits.get_config("tiny"), "gs://bucket/run")
  assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------ what arrives


def test_a_pod_receives_the_flags_unchanged(tmp_path):
  """Through ssh, a file and systemd to Python."""
  cloud, worker = tmp_path / "cloud", tmp_path / "worker"
  for folder in (cloud, worker, worker / "gamix_jax", worker / "venv/bin"):
    folder.mkdir(parents=True)
  programs(cloud, "gcloud")
  path = dict(PATH=f"{cloud}:{os.environ['PATH']}")
  ran = sh("tpu_pod.sh", "run", *FLAGS, env=POD | path)
  assert ran.returncode == 0, ran.stderr
  (call,) = calls(cloud)
  assert "--worker=all" in call
  (command,) = [x for x in call if x.startswith("--command=")]
  # The worker: sudo and systemctl only record; tee writes here.
  programs(worker, "systemctl", then="sys.exit(sys.argv[1] == 'is-active')")
  (worker / "sudo").write_text(
    '#!/bin/bash\ncase $1 in tee) cat > "$HOME/unit" ;; *) "$@" ;; esac\n'
  )
  (worker / "sudo").chmod(0o755)
  programs(worker / "venv/bin", "python")
  (worker / "gamix_jax/launch").symlink_to(LAUNCH)
  there = dict(HOME=str(worker), PATH=f"{worker}:{os.environ['PATH']}")
  subprocess.run(
    ["bash", "-c", command.partition("=")[2]],
    env=clean_env() | there,
    cwd=worker,
    check=True,
    timeout=60,
  )
  assert [c[1] for c in calls(worker)] == [
    "is-active", "daemon-reload", "enable", "start",
  ]  # fmt: skip
  unit = (worker / "unit").read_text()
  (start,) = re.findall("^ExecStart=(.*)$", unit, re.M)
  assert start == f"/bin/bash {worker}/gamix_jax.run"
  ran = subprocess.run(
    start.split(),
    env=clean_env() | there | dict(DRY_RUN="0"),
    cwd=tmp_path,
    check=False,
    capture_output=True,
    text=True,
    timeout=60,
  )
  # The recorded Python writes no config.json, which is reported.
  assert ran.returncode == 2, ran.stderr
  assert calls(worker / "venv/bin")[0][1:] == [
    "-m", "gamix_jax.main", "--multihost", *FLAGS,
  ]  # fmt: skip
  assert not (worker / "x").exists()


# ------------------------------------------------------------ JobSets


# The fields of JobSet v1alpha2 above the Job, from its definition; those of its
# template are typed by the Kubernetes client.
TEXT, WHOLE, TRUTH = "str", "int", "bool"
JOBSET = {
  "apiVersion": TEXT,
  "kind": TEXT,
  "metadata": "V1ObjectMeta",
  "spec": {
    "network": {
      "enableDNSHostnames": TRUTH,
      "publishNotReadyAddresses": TRUTH,
      "subdomain": TEXT,
    },
    "successPolicy": {"operator": TEXT, "targetReplicatedJobs": "list[str]"},
    "failurePolicy": {
      "maxRestarts": WHOLE,
      "restartStrategy": TEXT,
      "rules": [
        {
          "name": TEXT,
          "action": TEXT,
          "onJobFailureReasons": "list[str]",
          "targetReplicatedJobs": "list[str]",
        }
      ],
    },
    "replicatedJobs": [
      {"name": TEXT, "replicas": WHOLE, "template": "V1JobTemplateSpec"}
    ],
    "suspend": TRUTH,
    "ttlSecondsAfterFinished": WHOLE,
  },
}


def conform(value, kind, where=""):
  """Checks that a value has the type, without unknown keys.

  Raises:
    AssertionError: says where.
  """
  from kubernetes.client import models

  plain = {TEXT: str, WHOLE: int, TRUTH: bool}
  if isinstance(kind, list):
    assert isinstance(value, list), where
    for i, item in enumerate(value):
      conform(item, kind[0], f"{where}[{i}]")
  elif isinstance(kind, dict):
    assert isinstance(value, dict), where
    for key, item in value.items():
      assert key in kind, f"{where}.{key} is no field"
      conform(item, kind[key], f"{where}.{key}")
  elif kind in plain:
    assert type(value) is plain[kind], f"{where}: {value!r} is no {kind}"
  elif match := re.fullmatch(r"[lL]ist\[(.*)\]", kind):
    conform(value, [match[1]], where)
  elif match := re.fullmatch(r"[dD]ict[\[(]str, (.*)[\])]", kind):
    assert isinstance(value, dict), where
    for key, item in value.items():
      conform(item, match[1], f"{where}.{key}")
  elif kind == "object":
    pass
  else:
    model = getattr(models, kind)
    names = {model.attribute_map[k]: v for k, v in model.openapi_types.items()}
    conform(value, names, where)
    # The client's own checks: required keys and allowed values.
    back = {v: k for k, v in model.attribute_map.items()}
    model(**{back[k]: v for k, v in value.items()})


def job_set(kind, env=(), flags=FLAGS):
  ran = sh("gke/jobset.sh", "render", kind, *flags, env=SET | dict(env))
  assert ran.returncode == 0, ran.stderr
  return yaml.safe_load(ran.stdout)


@pytest.mark.parametrize("kind", ["tpu", "gpu"])
def test_job_set(kind):
  found = job_set(kind, dict(SPOT="1"))
  conform(found, JOBSET)
  (group,) = found["spec"]["replicatedJobs"]
  job = group["template"]["spec"]
  assert job["parallelism"] == job["completions"] == 4
  assert (group["replicas"], job["backoffLimit"]) == (1, 0)
  pod = job["template"]["spec"]
  (container,) = pod["containers"]
  env = {e["name"]: e["value"] for e in container["env"]}
  # <JobSet>-<replicated job>-<job>-<pod>.<JobSet>
  assert env["JAX_COORDINATOR_ADDRESS"] == "vae-host-0-0.vae:8476"
  assert group["name"] == "host"
  assert env["JAX_NUM_PROCESSES"] == "4"
  (rule,) = job["podFailurePolicy"]["rules"]
  assert rule["onExitCodes"]["containerName"] == container["name"]
  mounted = {m["name"] for m in container["volumeMounts"]}
  assert mounted == {v["name"] for v in pod["volumes"]}
  script, once, *_ = container["command"]
  assert (ROOT / script).stat().st_mode & 0o111
  assert once == "--once"
  # Kubernetes turns $$(x) into $(x), and changes nothing else.
  args = [a.replace("$$(", "$(") for a in container["args"]]
  assert args == list(FLAGS)
  assert all("$$(" in a for a in container["args"] if "$(" in a)


def test_wrong_job_sets_are_refused():
  """Tests the check: an unknown key, a type, a value, a missing key."""

  def set_in(found, *path, value):
    for key in path[:-1]:
      found = found[key]
    found[path[-1]] = value

  job = ("spec", "replicatedJobs", 0, "template", "spec")
  pod = (*job, "template", "spec")
  for path, value in [
    ((*job, "parallelsim"), 4),
    ((*job, "parallelism"), "4"),
    ((*pod, "containers", 0, "imagee"), "x"),
    ((*pod, "containers", 0, "env", 1, "value"), 4),
    (("spec", "replicatedJobs", 0, "replicas"), "two"),
    (("spec", "maxRestarts"), 2),
  ]:
    found = job_set("tpu")
    set_in(found, *path, value=value)
    with pytest.raises(AssertionError):
      conform(found, JOBSET)
  found = job_set("tpu")
  del found["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
  with pytest.raises(ValueError, match="template"):
    conform(found, JOBSET)


# ------------------------------------------------------------ until done


def attempts(tmp_path, *codes, last=5, option=(), send=None):
  """Runs until_done.sh with a command that ends as given: (code, saved step).

  Returns:
    Its exit code, and how often the command ran.
  """
  run = tmp_path / "run"
  script = tmp_path / "command"
  (tmp_path / "table").write_text("".join(f"{c} {s}\n" for c, s in codes))
  script.write_text(f"""#!/bin/bash
cd {tmp_path}
echo started >> ran
read -r code step < <(sed -n "$(wc -l < ran)p" table)
mkdir -p run/checkpoints
echo '{{"steps": {last}}}' > run/config.json
if [ "$step" = wait ]; then
  trap 'mkdir -p run/checkpoints/3; exit "$code"' TERM
  touch waiting
  while :; do sleep 0.02; done
fi
mkdir -p "run/checkpoints/$step"
exit "$code"
""")
  script.chmod(0o755)
  process = subprocess.Popen(
    ["bash", str(LAUNCH / "until_done.sh"), "--pause=0", *option,
     str(script), f"--workdir={run}"],
    env=clean_env(),
    text=True,
    stderr=subprocess.PIPE,
  )  # fmt: skip
  if send:
    begin = time.monotonic()
    while not (tmp_path / "waiting").exists():
      assert time.monotonic() - begin < 60
      time.sleep(0.02)
    process.send_signal(send)
  _, err = process.communicate(timeout=60)
  ran = len((tmp_path / "ran").read_text().splitlines())
  return process.returncode, ran, err


@pytest.mark.parametrize(("step", "done"), [(7, True), (6, False)])
def test_done_is_read_from_what_a_run_writes(tmp_path, step, done):
  from configs import digits
  from gamix_jax import config

  c = digits.get_config("tiny")
  c.steps = 7
  (tmp_path / "config.json").write_text(config.to_json(c))
  (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
  call = f'source {LAUNCH}/lib.sh; run_is_done "$1"'
  ran = subprocess.run(["bash", "-c", call, "_", tmp_path], check=False)
  assert (ran.returncode == 0) == done


@pytest.mark.parametrize(
  ("codes", "option", "wanted"),
  [
    ([(0, 5)], (), (0, 1)),
    ([(75, 2), (0, 3), (137, 4), (0, 5)], (), (0, 4)),  # it continues
    ([(75, 2), (2, 2)], (), (2, 2)),  # but not after a user error
    ([(75, 0)] * 6 + [(0, 5)], (), (0, 7)),  # it waits for others
    ([(1, 2), (1, 2), (1, 3), (1, 3), (1, 3)], (), (1, 5)),  # a bug
    ([(0, 3)], ("--once",), (75, 1)),  # another host was stopped
    ([(0, 5)], ("--once",), (0, 1)),
    ([(2, 0)], ("--once",), (2, 1)),
    ([(137, 3)], ("--once",), (137, 1)),
  ],
)
def test_until_done(tmp_path, codes, option, wanted):
  *found, err = attempts(tmp_path, *codes, option=option)
  assert tuple(found) == wanted, err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_until_done_forwards_a_signal(tmp_path, number):
  """The command saves, exits with 0, and is not restarted."""
  code, ran, err = attempts(tmp_path, (0, "wait"), (0, 5), send=number)
  assert (code, ran) == (75, 1), err
  assert (tmp_path / "run/checkpoints/3").is_dir()


# ------------------------------------------------------------ Slurm


@pytest.mark.parametrize(
  ("ended", "step", "restarts", "wanted", "requeued"),
  [
    (0, 5, 0, 0, False),
    (0, 3, 0, 0, True),  # the time limit
    (75, 3, 0, 0, True),
    (137, 3, 0, 0, True),
    (2, 3, 0, 2, False),
    (1, 3, 0, 1, False),
    (0, 3, 100, 2, False),
  ],
)
def test_slurm(tmp_path, ended, step, restarts, wanted, requeued):
  run = tmp_path / "run"
  (run / "checkpoints" / str(step)).mkdir(parents=True)
  (run / "config.json").write_text('{"steps": 5}')
  programs(tmp_path, "srun", then=f"sys.exit({ended})")
  programs(tmp_path, "scontrol")
  flags = (f"--workdir={run}", NASTY)
  ran = sh(
    "slurm.sbatch",
    *flags,
    env=dict(
      PATH=f"{tmp_path}:{os.environ['PATH']}",
      SLURM_JOB_ID="7",
      SLURM_SUBMIT_DIR=str(ROOT),
      SLURM_RESTART_COUNT=str(restarts),
    ),
    cwd=tmp_path,
  )
  assert ran.returncode == wanted, ran.stderr
  first, *more = calls(tmp_path)
  assert first[-len(flags) :] == list(flags)
  assert more == ([["scontrol", "requeue", "7"]] if requeued else [])


# ------------------------------------------------------------ processes


def local(tmp_path, body, **env):
  """Runs local_processes.sh with a Python that runs `body`, with number `i`."""
  python = tmp_path / "python"
  python.write_text(f"""#!{sys.executable}
import os, signal, sys, time
i = int(sys.argv[-1].rpartition("=")[2])
{body}
""")
  python.chmod(0o755)
  return subprocess.Popen(
    ["bash", str(LAUNCH / "local_processes.sh"), "--processes=3",
     f"--workdir={tmp_path}"],
    env=clean_env() | dict(PYTHON=str(python), PORT="1") | env,
    text=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
  )  # fmt: skip


@pytest.mark.parametrize(
  ("codes", "wanted"),
  [
    ((0, 0, 0), 0),
    ((75, 0, 75), 75),
    ((75, 1, 75), 1),
    ((75, 1, 2), 2),
    ((2, 75, 1), 2),
  ],
)
def test_local_exit_code(tmp_path, codes, wanted):
  process = local(tmp_path, f"print('I am', i); sys.exit({codes}[i])")
  out, err = process.communicate(timeout=60)
  assert (process.returncode, err) == (wanted, "")
  assert sorted(out.splitlines()) == [f"[{i}] I am {i}" for i in range(3)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_local_forwards_a_signal(tmp_path, number):
  """To all, and waits for them to save; into separate logs."""
  body = """
def asked(*_):
  time.sleep(0.2)
  print("saved", flush=True)
  sys.exit(0)
signal.signal(signal.SIGTERM, asked)
print("ready", flush=True)
time.sleep(60)
"""
  logs = [tmp_path / "logs" / f"process_{i}.log" for i in range(3)]
  process = local(tmp_path, body, LOGS=str(tmp_path / "logs"))
  begin = time.monotonic()
  while not all(p.exists() and "ready" in p.read_text() for p in logs):
    assert time.monotonic() - begin < 60, process.communicate()
    time.sleep(0.02)
  process.send_signal(number)
  process.communicate(timeout=60)
  assert process.returncode == 0
  assert [p.read_text() for p in logs] == ["ready\nsaved\n"] * 3


def test_local_for_real(program, tmp_path):
  """Two processes connect, and agree that the folder is somebody else's."""
  (tmp_path / "checkpoints").mkdir()
  ran = subprocess.run(
    ["bash", str(LAUNCH / "local_processes.sh"), *SMALL,
     f"--workdir={tmp_path}"],
    env=program.env() | dict(PYTHON=sys.executable),
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=240,
    check=False,
  )  # fmt: skip
  assert ran.returncode == 2, ran.stdout + ran.stderr
  for i in range(2):
    assert re.search(rf"^\[{i}\] .*no config.json", ran.stdout, re.M), (
      ran.stdout
    )
