"""The JobSet manifest: a cluster would take it, its numbers fit the slice; mistakes are refused before kubectl."""

import json
import shlex

import jsonschema
import pytest
import yaml

from tests.launch.machine import REPOSITORY

SCHEMA = json.loads((REPOSITORY / "tests" / "launch" / "jobset.schema.json").read_text(encoding="utf-8"))
COMMAND = "-- vfm train --config=c.py --workdir=gs://bucket/runs/a"
GIVEN = f"--image=example.org/vfm:1 {COMMAND}"


def manifest(machine, words):
    done = machine.run(f"scripts/launch/jobset.sh {words}")
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)


def job(found):
    (replicated,) = found["spec"]["replicatedJobs"]
    return replicated["replicas"], replicated["template"]["spec"]


@pytest.mark.parametrize("options", ["", "--spot", "--slices=3 --namespace=ml --max-restarts=0"])
def test_a_manifest_fits_the_schema_of_the_cluster(machine, options):
    jsonschema.validate(manifest(machine, f"a --on=v5e:4x4 --dry-run {options} {GIVEN}"), SCHEMA)


def test_the_schema_refuses_what_a_cluster_would(machine):
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    found = manifest(machine, f"a --on=v5e:4x4 --dry-run {GIVEN}")
    found["spec"]["failurePolicy"]["maxRestart"] = 3
    with pytest.raises(jsonschema.ValidationError, match="maxRestart"):
        jsonschema.validate(found, SCHEMA)


# https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus: accelerator's label, hosts, chips of each
@pytest.mark.parametrize(
    ("on", "label", "hosts", "chips"),
    [
        ("v5e:1x1", "tpu-v5-lite-podslice", 1, 1),
        ("v5e:2x2", "tpu-v5-lite-podslice", 1, 4),
        ("v5e:2x4", "tpu-v5-lite-podslice", 2, 4),
        ("v5e:16x16", "tpu-v5-lite-podslice", 64, 4),
        ("v6e:4x8", "tpu-v6e-slice", 8, 4),
        ("v5p:2x2x1", "tpu-v5p-slice", 1, 4),
        ("v5p:2x4x4", "tpu-v5p-slice", 8, 4),
        ("v5p:8x8x8", "tpu-v5p-slice", 128, 4),
        ("v4:4x4x4", "tpu-v4-podslice", 16, 4),
    ],
)
def test_pods_and_chips_follow_from_the_topology(machine, on, label, hosts, chips):
    _, spec = job(manifest(machine, f"a --on={on} --dry-run {GIVEN}"))
    pod = spec["template"]["spec"]
    assert (spec["parallelism"], spec["completions"]) == (hosts, hosts)
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-accelerator"] == label
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == on.split(":")[1]
    tpu = {"google.com/tpu": chips}
    assert pod["containers"][0]["resources"] == {"requests": tpu, "limits": tpu}
    assert pod["terminationGracePeriodSeconds"] >= 60


def test_every_pod_is_told_how_many_processes_there_are(machine):
    replicas, spec = job(manifest(machine, f"a --on=v5e:4x8 --slices=3 --dry-run {GIVEN}"))
    variables = {entry["name"]: entry.get("value") for entry in spec["template"]["spec"]["containers"][0]["env"]}
    assert (replicas, spec["completions"], variables["JAX_NUM_PROCESSES"]) == (3, 8, "24")
    assert {"JOBSET_NAME", "REPLICATED_JOB_NAME", "JOB_INDEX"} <= set(variables)


def test_arguments_reach_the_container_as_they_were_given(machine):
    words = ['--config.title=it\'s "so" & 100 % $(HOME) \\ $$', "--config.x=", "a b*"]
    found = manifest(machine, f"a --on=v5e:4x4 --dry-run {GIVEN} {shlex.join(words)}")
    command = job(found)[1]["template"]["spec"]["containers"][0]["command"]
    assert command[:3] == ["bash", "scripts/launch/attend.sh", "--forward-term"]
    assert "--workdir=/gcs/bucket/runs/a" in command
    # Kubernetes makes one dollar of two: https://kubernetes.io/docs/reference/kubernetes-api, Container.command
    assert [word.replace("$$", "$") for word in command[-3:]] == words


def test_the_manifest_goes_to_kubectl(machine):
    machine.program("kubectl", 'cat >"$CALLS.manifest"')
    words = f"a --on=v5e:4x4 --slices=2 --namespace=ml --context=lab {GIVEN}"
    done = machine.run(f"scripts/launch/jobset.sh {words}")
    assert done.returncode == 0, done.stderr
    assert machine.calls() == [["kubectl", "--namespace=ml", "--context=lab", "create", "-f", "-"]]
    sent = (machine.folder / "calls.manifest").read_text(encoding="utf-8")
    assert yaml.safe_load(sent) == manifest(machine, f"{words.replace(COMMAND, '')} --dry-run {COMMAND}")
    assert "kubectl --namespace=ml --context=lab delete jobset a" in done.stderr


def test_a_refusal_of_kubectl_is_told_with_the_next_move(machine):
    machine.program("kubectl", "echo AlreadyExists >&2; exit 1")
    done = machine.run(f"scripts/launch/jobset.sh a --on=v5e:4x4 {GIVEN}")
    assert done.returncode == 2
    assert "AlreadyExists" in done.stderr
    assert "kubectl delete jobset a" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (f"a {GIVEN}", "--on=is missing"),
        (f"a --on=v5e:3x4 {GIVEN}", "no such slice"),
        (f"a --on=v5e:, {GIVEN}", "no such slice"),
        (f"a --on=v5p:4x4 {GIVEN}", "no such slice"),
        (f"a --on=v5p:4x4x6 {GIVEN}", "no such slice"),
        (f"a --on=h100:8 {GIVEN}", "Expected: v5e, v6e, v5p or v4"),
        (f"a --on=v5e:2x2 --slices=2 {GIVEN}", "slices of a single host cannot be joined"),
        (f"a --on=v5e:4x4 --chips-per-host=8 {GIVEN}", "have 4 chips"),
        (f"a --on=v5e:1x1 --chips-per-host=4 {GIVEN}", "has 1"),
        (f"a --on=v5e:4x4 --slices=two {GIVEN}", "--slices=two is not a whole number"),
        (f"A_b --on=v5e:4x4 {GIVEN}", "The JobSet's name is A_b"),
        (f"--on=v5e:4x4 {GIVEN}", "The JobSet's name is missing"),
        (f"a b --on=v5e:4x4 {GIVEN}", "write --flag=VALUE"),
        (f"a --on=v5e:4x4 {COMMAND}", "The image is missing"),
        (f"a --on=v5e:4x4 --imgae=x {GIVEN}", "no option --imgae=x"),
        ("a --on=v5e:4x4 --image=i -- vfm train --config=c.py", "no --workdir"),
        ("a --on=v5e:4x4 --image=i -- vfm train --workdir=runs/a", "inside the container"),
        ("a --on=v5e:4x4 --image=i -- vfm train --workdir=gs://bucket", "no place in a bucket"),
        ("a --on=v5e:4x4 --image=i -- python train.py", "Expected: -- vfm train"),
        ("a --on=v5e:4x4 --image=i", "found: nothing"),
        (f"a --on=v5e:4x4 {GIVEN}", "There is no kubectl on PATH"),
    ],
)
def test_a_mistake_is_refused_in_words(machine, words, message):
    machine.refuses(f"scripts/launch/jobset.sh {words}", message)
