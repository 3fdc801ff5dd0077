"""tpu_vm.sh beside a stand-in for gcloud: what it calls, in which order, what it copies, and what it refuses."""

import tarfile

import pytest

ZONE = "--zone=us-west4-a"
COMMAND = "-- vfm train --config=c.py --workdir=gs://bucket/runs/a"

# The state of the request is the next line of $CALLS.requests, that of the workers the next of $CALLS.workers; the
# last line stays. What is copied is kept. Beside the workers' words gcloud has some of its own.
GCLOUD = """
next() { head -n 1 "$CALLS.$1"; [ "$(wc -l <"$CALLS.$1")" = 1 ] || sed -i 1d "$CALLS.$1"; }
case "$*" in
*' describe '*)
    state=$(next requests)
    case $state in
    ABSENT) echo "ERROR: (gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: Resource ..." >&2; exit 1 ;;
    DENIED) echo "ERROR: PERMISSION_DENIED" >&2; exit 1 ;;
    esac
    echo "$state" ;;
*' scp '*) cp "$5" "$CALLS.tar.gz" ;;
*'tpu_worker.sh status'*)
    echo "SSH: Attempting to connect to worker 0..."
    next workers | tr ' ' '\\n' | sed -e 's/^/host: /' -e 's/_/ /' ;;
esac
"""


def verbs(machine):
    """Of each call the words that tell: create, describe, scp, or what a worker was told."""
    told = []
    for call in machine.calls("gcloud"):
        if call[4] != "ssh":
            told.append(call[4])
        elif "tpu_worker.sh status" in call[-1]:
            told.append("status")
        else:
            told.append(call[-1].removeprefix("--command=bash tpu_worker.sh ").split()[0])
    return told


@pytest.fixture
def gcloud(machine):
    """Sets the states that gcloud tells one after another."""
    machine.program("gcloud", GCLOUD)
    machine.commit()

    def tell(requests, workers="idle"):
        for name, text in (("requests", requests), ("workers", workers)):
            (machine.folder / f"calls.{name}").write_text("\n".join(text.split(", ")) + "\n", encoding="utf-8")

    return tell


def test_run_waits_for_the_slice_then_copies_then_sets_up_then_starts(machine, gcloud):
    gcloud("WAITING_FOR_RESOURCES, PROVISIONING, ACTIVE")
    done = machine.run(f"scripts/launch/tpu_vm.sh run pod {ZONE} --project=p {COMMAND} --config.title='a b'")
    assert done.returncode == 0, done.stderr
    assert verbs(machine) == ["describe", "describe", "describe", "scp", "setup", "start"]
    assert "pod: PROVISIONING" in done.stderr
    *_, copy, setup, start = machine.calls("gcloud")
    assert copy[1:5] == ["compute", "tpus", "tpu-vm", "scp"]
    assert copy[6:] == ["scripts/launch/tpu_worker.sh", "pod:", ZONE, "--project=p", "--worker=all"]
    everywhere = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "pod", ZONE, "--project=p", "--worker=all"]
    assert setup == [*everywhere, "--command=bash tpu_worker.sh setup bucket"]
    words = "vfm train --config=c.py --workdir=/gcs/bucket/runs/a --config.title='a b'"
    assert start == [*everywhere, f"--command=bash tpu_worker.sh start {words}"]


def test_the_copy_is_what_git_tracks_as_it_is_now(machine, gcloud):
    gcloud("ACTIVE")
    worker = machine.code / "scripts" / "launch" / "tpu_worker.sh"
    worker.write_text("changed\n", encoding="utf-8")
    for name in (".venv/key.json", "runs/a/summary.json", "credentials.json"):
        (machine.code / name).parent.mkdir(parents=True, exist_ok=True)
        (machine.code / name).write_text("{}", encoding="utf-8")
    done = machine.run(f"scripts/launch/tpu_vm.sh run pod {ZONE} {COMMAND}")
    assert done.returncode == 0, done.stderr
    with tarfile.open(machine.folder / "calls.tar.gz") as archive:
        names = {member.name for member in archive if member.isfile()}
        assert archive.extractfile("scripts/launch/tpu_worker.sh").read() == b"changed\n"
    assert names == {f"scripts/launch/{path.name}" for path in worker.parent.iterdir()}
    assert "Not copied, since git does not track them: " in done.stderr
    assert "credentials.json" in done.stderr
    assert worker.read_text(encoding="utf-8") == "changed\n"


@pytest.mark.parametrize("failing", ["scp", "setup"])
def test_nothing_starts_where_a_worker_is_not_ready(machine, gcloud, failing):
    gcloud("ACTIVE")
    machine.program("gcloud", f'{GCLOUD}\ncase "$*" in *" {failing} "*) exit 1 ;; esac')
    done = machine.run(f"scripts/launch/tpu_vm.sh run pod {ZONE} {COMMAND}")
    assert done.returncode == 2
    assert "was not started on all workers" in done.stderr
    assert "start" not in verbs(machine)
    assert not list(machine.folder.glob("tmp.*"))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("ABSENT", "There is no pod in us-west4-a"),
        ("SUSPENDED", "Delete it and create it anew"),
        ("FAILED", "Delete it and create it anew"),
        ("DENIED", "PERMISSION_DENIED"),
    ],
)
def test_run_tells_why_there_is_no_slice(machine, gcloud, state, message):
    gcloud(state)
    done = machine.run(f"scripts/launch/tpu_vm.sh run pod {ZONE} {COMMAND}")
    assert done.returncode == 2
    assert message in done.stderr
    assert verbs(machine) == ["describe"]


def test_create_delete_stop_and_logs_call_gcloud_once(machine, gcloud):
    gcloud("ACTIVE")
    slice_ = ["pod", ZONE]
    ssh = ["tpu-vm", "ssh", *slice_]
    expected = {
        f"create pod {ZONE} --accelerator-type=v6e-16 --spot --labels=a=b": [
            *("queued-resources", "create", *slice_, "--node-id=pod", "--accelerator-type=v6e-16"),
            *("--runtime-version=v2-alpha-tpuv6e", "--spot", "--labels=a=b"),
        ],
        f"delete pod {ZONE} --quiet": ["queued-resources", "delete", *slice_, "--force", "--quiet"],
        f"stop pod {ZONE}": [*ssh, "--worker=all", "--command=bash tpu_worker.sh stop"],
        f"logs pod {ZONE}": [*ssh, "--worker=0", "--command=bash tpu_worker.sh log"],
    }
    for words in expected:
        done = machine.run(f"scripts/launch/tpu_vm.sh {words}")
        assert done.returncode == 0, done.stderr
    assert machine.calls("gcloud") == [["gcloud", "compute", "tpus", *words] for words in expected.values()]


def test_status_asks_the_workers_of_an_active_slice_only(machine, gcloud):
    gcloud("PROVISIONING, ACTIVE", "running")
    first, second = (machine.run(f"scripts/launch/tpu_vm.sh status pod {ZONE}").stdout for _ in range(2))
    assert first == "pod: PROVISIONING\n"
    assert second.splitlines()[::2] == ["pod: ACTIVE", "host: running"]


BABYSIT = f"scripts/launch/tpu_vm.sh babysit pod {ZONE} --accelerator-type=v5e-16 --spot {COMMAND}"


def test_babysit_brings_a_preempted_slice_back_and_goes_on_in_the_same_workdir(machine, gcloud):
    requests = "ABSENT, WAITING_FOR_RESOURCES, ACTIVE, ACTIVE, SUSPENDING, SUSPENDED, ABSENT, ACTIVE, ACTIVE, ACTIVE"
    gcloud(requests, "idle, running, idle, running, running finished, finished")
    done = machine.run(BABYSIT)
    assert done.returncode == 0, done.stderr
    launch = ["describe", "status", "scp", "setup", "start"]
    look = ["describe", "status"]
    life = ["describe", "create", "describe", *launch, *look, "describe", "describe", "delete"]
    assert verbs(machine) == [*life, "describe", "create", *launch, *look, *look, *look]
    starts = [call for call in machine.calls("gcloud") if "start vfm train" in call[-1]]
    assert len(starts) == 2
    assert starts[0] == starts[1]
    first, second = [call for call in machine.calls("gcloud") if call[4] == "scp"]
    assert first == second, "the code is packed once"
    assert "The run is finished." in done.stderr


def test_babysit_starts_again_on_all_workers_where_one_was_restarted(machine, gcloud):
    gcloud("ACTIVE", "running interrupted, running, finished")
    done = machine.run(BABYSIT)
    assert done.returncode == 0, done.stderr
    again = ["describe", "status", "stop", "scp", "setup", "start"]
    assert verbs(machine) == [*again, "describe", "status", "describe", "status"]


@pytest.mark.parametrize("ended", ["failed_1", "stopped"])
def test_babysit_leaves_alone_a_run_that_ended_by_itself(machine, gcloud, ended):
    gcloud("ACTIVE", f"running, {ended} running")
    done = machine.run(BABYSIT)
    assert done.returncode == 1
    assert verbs(machine) == ["describe", "status"] * 3
    assert ended.replace("_", " ") in done.stderr
    assert "still there, and costs" in done.stderr


def test_babysit_takes_a_failure_before_a_preemption_for_the_preemption(machine, gcloud):
    gcloud("ACTIVE, SUSPENDED, ABSENT, ACTIVE", "failed_1, idle, finished")
    done = machine.run(BABYSIT)
    assert done.returncode == 0, done.stderr
    assert verbs(machine).count("create") == 1
    assert verbs(machine).count("start") == 1


def test_babysit_outlives_a_gcloud_that_does_not_answer(machine, gcloud):
    gcloud("DENIED, ACTIVE", "finished")
    done = machine.run(BABYSIT)
    assert done.returncode == 0, done.stderr


CREATE = f"create pod {ZONE} --accelerator-type="


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "Nothing is no verb"),
        ("start pod", "start is no verb"),
        ("create", "The slice's name is missing"),
        (f"create Pod {ZONE} --accelerator-type=v6e-8", "The slice's name is Pod"),
        (f"create a b {ZONE} --accelerator-type=v6e-8", "write --flag=VALUE"),
        ("create pod --accelerator-type=v6e-8", "There is no --zone=ZONE"),
        (f"create pod {ZONE}", "There is no --accelerator-type"),
        (f"{CREATE}h100-8", "h100-8 is not known"),
        (f"{CREATE}v6e", "no slice of that size"),
        (f"{CREATE}v6e-x", "no slice of that size"),
        (f"{CREATE}v5e-12", "v5litepod has 1 4 8 16"),
        (f"{CREATE}v5p-12", "multiples of 8"),
        (f"{CREATE}tpu7x-8", "to be had on GKE"),
        (f"{CREATE}v6e-8 --runtime-version=x", "chosen by this script"),
        (f"{CREATE}v6e-8 {COMMAND}", "create starts no command"),
        (f"run pod {ZONE}", "found: nothing"),
        (f"run pod {ZONE} -- vfm eval --workdir=gs://b/a", "Expected: -- vfm train"),
        (f"run pod {ZONE} -- vfm train --config=c.py", "no --workdir"),
        (f"run pod {ZONE} -- vfm train --workdir=runs/a", "each host's own copy of the code"),
        (f"run pod {ZONE} -- vfm train --workdir=s3://b/a", "no path"),
        (f"run pod {ZONE} -- vfm train --workdir=gs://b/", "no place in a bucket"),
        (f"run pod {ZONE} --spot {COMMAND}", "run does not take --spot"),
        (f"run pod {ZONE} --accelerator-type=v6e-8 {COMMAND}", "the slice has one"),
        (f"logs pod {ZONE} --worker=all", "no worker's number"),
        (f"{CREATE}v6e-8", "There is no gcloud on PATH"),
    ],
)
def test_a_mistake_is_refused_in_words(machine, words, message):
    machine.refuses(f"scripts/launch/tpu_vm.sh {words}", message)
