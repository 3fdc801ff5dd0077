"""slurm.sh and what it submits: the numbers sbatch gets, checks inside an allocation, going on after a requeue."""

import json

import pytest

VFM = ["vfm", "train", "--config=c.py", "--workdir=run"]
COMMAND = f"-- {' '.join(VFM)}"

# One task of the step, as SLURM would start it; the options of srun are written down and dropped.
SRUN = """
while [[ $1 == --* ]]; do shift; done
export SLURM_PROCID=${SLURM_PROCID:-0} SLURM_LOCALID=${SLURM_LOCALID:-0} SLURM_NODEID=${SLURM_NODEID:-0}
export SLURM_STEP_TASKS_PER_NODE=$SLURM_TASKS_PER_NODE
exec "$@"
"""


def submitted(machine):
    ((_, *words),) = machine.calls("sbatch")
    return words


@pytest.mark.parametrize(
    ("options", "processes"),
    [("--gpus-per-node=8", "8"), ("--gpus-per-node=a100:8", "8"), ("--gpus-per-node=8 --processes-per-node=1", "1")],
)
def test_one_process_for_each_gpu_or_for_the_node_is_submitted(machine, options, processes):
    machine.program("sbatch")
    machine.program("vfm")
    done = machine.run(f"scripts/launch/slurm.sh --nodes=2 {options} --time=1:00:00 --comment='a b' {COMMAND}")
    assert done.returncode == 0, done.stderr
    words = submitted(machine)
    assert words[:3] == ["--nodes=2", options.split()[0], f"--ntasks-per-node={processes}"]
    assert words[3:5] == ["--time=1:00:00", "--comment=a b"]
    assert words[5:] == ["scripts/launch/slurm.sbatch", *VFM]
    assert "--cpus-per-task" in done.stderr


def test_the_batch_script_asks_to_be_told_and_to_be_put_back(machine):
    text = (machine.code / "scripts" / "launch" / "slurm.sbatch").read_text(encoding="utf-8")
    directives = {line.split(maxsplit=1)[1] for line in text.splitlines() if line.startswith("#SBATCH ")}
    assert {"--signal=TERM@120", "--requeue", "--open-mode=append"} <= directives


@pytest.fixture
def job(machine):
    """Runs the batch script on a node: GPUs of the driver and of the job, tasks on each node, SLURM's other words."""
    machine.program("srun", SRUN)
    machine.program("scontrol")
    machine.program("vfm")

    def run(*, listed=8, given=8, tasks="8", **variables):
        lines = "".join(f'echo "GPU {i}: NVIDIA H100 (UUID: GPU-{i})"\n' for i in range(listed))
        machine.program("nvidia-smi", lines, record=False)
        slurm = {
            "SLURM_SUBMIT_DIR": str(machine.code),
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "n[1-2]",
            "SLURMD_NODENAME": "n1",
            "SLURM_TASKS_PER_NODE": tasks,
        }
        if given is not None:
            slurm["SLURM_GPUS_ON_NODE"] = str(given)
        script = ["bash", "scripts/launch/slurm.sbatch", *VFM]
        return machine.run(script, **slurm | variables)

    return run


EIGHT = "0,1,2,3,4,5,6,7"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (dict(tasks="8(x2)", CUDA_VISIBLE_DEVICES=EIGHT), "8 process(es) for 8 GPU(s) on each node"),
        (dict(tasks="1(x2)"), "1 process(es) for 8 GPU(s) on each node"),
        (dict(listed=4, given=4, tasks="4"), "4 process(es) for 4 GPU(s)"),
        (dict(listed=8, given=2, tasks="2", CUDA_VISIBLE_DEVICES="2,5"), "2 process(es) for 2 GPU(s)"),
        (dict(given=None, tasks="8,8"), "8 process(es) for 8 GPU(s)"),
        (dict(tasks="1", SLURM_GPUS_PER_TASK="8"), "1 process(es) for 8 GPU(s)"),
    ],
)
def test_a_whole_node_is_used(machine, job, given, words):
    done = job(**given)
    assert done.returncode == 0, done.stderr
    assert words in done.stderr
    assert machine.calls("vfm") == [VFM]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (dict(SLURM_GPUS_PER_TASK="1", CUDA_VISIBLE_DEVICES="0"), "--gpus-per-task with 8 tasks"),
        (dict(SLURM_TRES_PER_TASK="cpu=4,gres/gpu=1"), "--gpus-per-task with 8 tasks"),
        (dict(tasks="8(x2)", CUDA_VISIBLE_DEVICES="3"), "sees 1 of the 8 GPUs (CUDA_VISIBLE_DEVICES=3)"),
        (dict(tasks="1", CUDA_VISIBLE_DEVICES=""), "sees 0 of the 8 GPUs"),
        (dict(given=None, tasks="1", CUDA_VISIBLE_DEVICES="0,1"), "sees 2 of the 8 GPUs"),
        (dict(listed=7, tasks="1"), "sees 7 of the 8 GPUs (CUDA_VISIBLE_DEVICES=not set)"),
        (dict(tasks="4"), "4 processes for 8 GPUs"),
        (dict(tasks="8,4", SLURM_NODEID="1"), "4 processes for 8 GPUs"),
        (dict(tasks="8(x2),1,2", SLURM_NODEID="3"), "2 processes for 8 GPUs"),
        (dict(given=0, listed=0, tasks="1"), "no GPU was given to the job"),
    ],
)
def test_the_silent_use_of_a_part_is_refused_before_training(machine, job, given, words):
    done = job(**given)
    assert done.returncode == 2
    assert "error: on n1: " in done.stderr
    assert words in done.stderr
    assert machine.calls("vfm") == []


def test_one_process_of_each_node_speaks(job):
    done = job(tasks="4", SLURM_LOCALID="3", SLURM_PROCID="3")
    assert done.returncode == 2
    assert "error" not in done.stderr


def test_a_node_without_a_driver_is_refused(machine, job):
    job()
    (machine.bin / "nvidia-smi").unlink()
    slurm = {"SLURM_SUBMIT_DIR": str(machine.code), "SLURM_TASKS_PER_NODE": "1"}
    done = machine.run("bash scripts/launch/slurm.sbatch vfm train --workdir=run", **slurm)
    assert done.returncode == 2
    assert "no NVIDIA driver" in done.stderr


def test_cores_and_the_end_of_all_are_handed_to_srun(machine, job):
    job(SLURM_CPUS_PER_TASK="12")
    ((_, *words),) = machine.calls("srun")
    assert words[:3] == ["--kill-on-bad-exit=1", "--label", "--cpus-per-task=12"]


# An end in the year 2001, or in 2286; the summary as vfm leaves it.
@pytest.mark.parametrize(
    ("summary", "end", "requeued", "words"),
    [
        ({"finished": False, "stopped_by": "SIGTERM"}, "1000000000", True, "into the queue again"),
        ({"finished": False, "stopped_by": "SIGTERM"}, None, True, "into the queue again"),
        ({"finished": False, "stopped_by": "SIGTERM"}, "9999999999", False, "Stopped by hand"),
        ({"finished": True, "stopped_by": ""}, "1000000000", False, "start 1"),
        (None, "1000000000", False, "start 1"),
    ],
)
def test_a_run_that_was_out_of_time_goes_into_the_queue_again(machine, job, summary, end, requeued, words):
    if summary is not None:
        (machine.code / "run").mkdir()
        text = json.dumps(summary, indent=1)
        (machine.code / "run" / "summary.json").write_text(text, encoding="utf-8")
    done = job(**({} if end is None else {"SLURM_JOB_END_TIME": end}))
    assert done.returncode == 0, done.stderr
    assert words in done.stderr
    assert machine.calls("scontrol") == ([["scontrol", "requeue", "7"]] if requeued else [])


def test_the_second_start_runs_the_same_command(machine, job):
    for count in (0, 1):
        assert f"start {count + 1}" in job(SLURM_RESTART_COUNT=str(count)).stderr
    first, second = machine.calls("vfm")
    assert first == second


def test_a_failure_is_the_jobs_own(machine, job):
    machine.program("vfm", "exit 3")
    assert job().returncode == 3
    assert machine.calls("scontrol") == []


def test_a_job_submitted_from_elsewhere_says_so(machine):
    done = machine.run("bash scripts/launch/slurm.sbatch vfm train --workdir=run", SLURM_SUBMIT_DIR=str(machine.home))
    assert done.returncode == 2
    assert "submit from the repository's folder" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (COMMAND, "There is no --gpus-per-node"),
        (f"--gpus-per-node=0 {COMMAND}", "--gpus-per-node=0 is not a whole number of at least 1"),
        (f"--gpus-per-node=8 --nodes=x {COMMAND}", "--nodes=x is not a whole number"),
        (f"--gpus-per-node=8 --processes-per-node=4 {COMMAND}", "would share 8 GPUs unevenly"),
        (f"--gpus-per-node=8 --gpus-per-task=1 {COMMAND}", "hides GPUs of a node from its processes"),
        (f"--gpus-per-node=8 --gpu-bind=single:1 {COMMAND}", "hides GPUs of a node from its processes"),
        (f"--gres=gpu:8 {COMMAND}", "Use --gpus-per-node=G"),
        (f"--gpus-per-node=8 --ntasks-per-node=8 {COMMAND}", "use --processes-per-node"),
        (f"--gpus-per-node=8 --signal=USR1@60 {COMMAND}", "is set by slurm.sbatch"),
        (f"--gpus-per-node=8 --partition gpu {COMMAND}", "write --flag=VALUE"),
        ("--gpus-per-node=8", "found: nothing"),
        ("--gpus-per-node=8 -- vfm train --config=c.py", "no --workdir"),
        ("--gpus-per-node=8 -- vfm train --workdir=gs://b/a", "not mounted on a SLURM cluster"),
        (f"--gpus-per-node=8 {COMMAND}", "There is no sbatch on PATH"),
    ],
)
def test_a_mistake_is_refused_in_words(machine, words, message):
    machine.refuses(f"scripts/launch/slurm.sh --cpus-per-task=4 {words}", message)


def test_a_missing_vfm_is_told_before_the_queue(machine):
    machine.program("sbatch")
    done = machine.run(f"scripts/launch/slurm.sh --gpus-per-node=8 --cpus-per-task=4 {COMMAND}")
    assert done.returncode == 2
    assert "There is no vfm" in done.stderr
    assert machine.calls("sbatch") == []
