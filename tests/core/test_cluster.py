"""What launchers put into the environment, and the run that is found in it."""

import re

import pytest

from vfm_jax.core import cluster
from vfm_jax.core.cluster import alone_in_an_allocation, expand_nodes, find_cluster
from vfm_jax.core.errors import UserError


@pytest.fixture(autouse=True)
def _no_gpu_here(monkeypatch, tmp_path):
    monkeypatch.setattr(cluster, "_NVIDIA", str(tmp_path / "none"))


def _slurm(task, tasks, nodes, per_node, **more):
    """Of a task in a step of `tasks` over `nodes`, so many on each."""
    return {
        "SLURM_JOB_ID": "4711",
        "SLURM_STEP_ID": "0",
        "SLURM_NTASKS": str(tasks),
        "SLURM_STEP_NUM_TASKS": str(tasks),
        "SLURM_STEP_NODELIST": nodes,
        "SLURM_STEP_TASKS_PER_NODE": per_node,
        "SLURM_PROCID": str(task),
        "SLURM_LOCALID": str(task % int(re.match(r"\d+", per_node)[0])),
        "SLURM_NODEID": str(task // int(re.match(r"\d+", per_node)[0])),
    } | more


EIGHT = "0,1,2,3,4,5,6,7"
MPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
GKE = {"TPU_WORKER_HOSTNAMES": "a-0.a,a-1.a", "TPU_WORKER_ID": "1"}
SLICES = {"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1", "MEGASCALE_COORDINATOR_ADDRESS": "s0-0.x:8080"}
JOBSET = {"JOB_COMPLETION_INDEX": "2", "JOBSET_NAME": "run", "REPLICATED_JOB_NAME": "gpu", "JAX_NUM_PROCESSES": "4"}
PLAIN = {"JAX_COORDINATOR_ADDRESS": "a:1234", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "2"}

# Environment -> host of the first process, how many there are, and which this is.
FOUND = {
    "jax_variables": (PLAIN, "a", 4, 2),
    "slurm_per_gpu": (_slurm(9, 16, "gpu[01-02]", "8(x2)", CUDA_VISIBLE_DEVICES=EIGHT), "gpu01", 16, 9),
    "slurm_per_node": (_slurm(1, 2, "gpu[1,9]", "1(x2)", CUDA_VISIBLE_DEVICES=EIGHT), "gpu1", 2, 1),
    "slurm_on_processors": (_slurm(0, 2, "cpu-a,cpu-b", "1(x2)"), "cpu-a", 2, 0),
    "open_mpi": (MPI | {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911"}, "10.96.0.1", 4, 3),
    "open_mpi_ipv6": (MPI | {"OMPI_MCA_orte_hnp_uri": "13.0;tcp6://[fe80::b9b,2620::2]:4337"}, "[fe80::b9b]", 4, 3),
    "open_mpi_on_one_host": (MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, "127.0.0.1", 4, 3),
    "open_mpi_inside_slurm": (
        _slurm(1, 2, "n[1-2]", "1(x2)") | MPI | {"OMPI_MCA_orte_hnp_uri": "13.0;tcp://n1:4337"},
        "n1",
        4,
        3,
    ),
    "jobset": (JOBSET, "run-gpu-0-0.run", 4, 2),
    "indexed_job": (
        {"JOB_COMPLETION_INDEX": "1", "JAX_NUM_PROCESSES": "2", "JAX_COORDINATOR_ADDRESS": "p:9"},
        "p",
        2,
        1,
    ),
    "gke_tpu": (GKE, "a-0.a", 2, 1),
    "gke_tpu_newer": ({"TPU_PROCESS_ADDRESSES": "b-0:8476,b-1:8476", "TPU_WORKER_ID": "0"}, "b-0", 2, 0),
    "gke_tpu_slices": (GKE | SLICES, "s0-0.x", 4, 3),
}


@pytest.mark.parametrize(("environment", "host", "count", "number"), FOUND.values(), ids=list(FOUND))
def test_a_run_is_found_in_the_environment(environment, host, count, number):
    found = find_cluster(environment)
    assert found.coordinator.rpartition(":")[0] == host
    assert (found.num_processes, found.process_id) == (count, number)
    assert 0 < int(found.coordinator.rpartition(":")[2]) < 2**16


ALONE = {
    "a_laptop": {"HOME": "/home/me"},
    "a_shell_in_a_slurm_allocation": {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_JOB_NUM_NODES": "2"},
    "an_interactive_step": _slurm(0, 1, "n1", "1", SLURM_NTASKS="4", SLURM_STEP_ID="4294967290"),
    "one_task": _slurm(0, 1, "n1", "1", CUDA_VISIBLE_DEVICES=EIGHT),
    "one_process_of_mpi": MPI | {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"},
    "pods_that_work_alone": {"JOB_COMPLETION_INDEX": "3"},
    "a_jobset_that_says_so": JOBSET | {"JAX_NUM_PROCESSES": "1"},
    "one_tpu_host": {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"},
    "processors_of_a_tpu_host": GKE | {"JAX_PLATFORMS": "cpu"},
}


@pytest.mark.parametrize("environment", ALONE.values(), ids=list(ALONE))
def test_a_process_works_alone(environment):
    assert find_cluster(environment) is None


def test_flags_win_over_the_environment():
    environment = _slurm(1, 2, "n[1-2]", "1(x2)")
    found = find_cluster(environment, coordinator="other:77")
    assert (found.coordinator, found.num_processes, found.process_id) == ("other:77", 2, 1)
    found = find_cluster(PLAIN, coordinator="b:1", num_processes=3, process_id=0)
    assert found[1:4] == ("b:1", 3, 0)
    assert find_cluster(environment, num_processes=1) is None
    assert find_cluster(GKE | {"JAX_COORDINATOR_PORT": "5"}).coordinator == "a-0.a:5"
    assert find_cluster(PLAIN | {"JAX_COORDINATOR_ADDRESS": "a", "JAX_COORDINATOR_PORT": "5"}).coordinator == "a:5"


@pytest.mark.parametrize(
    ("environment", "given", "said"),
    [
        ({}, dict(coordinator="a:1"), "Nothing says how many processes there are (found: coordinator=a:1)"),
        ({}, dict(num_processes=2, process_id=0), "Nothing says where the first process is"),
        ({}, dict(coordinator="a:1", num_processes=2), "Give --process-id=I, or set JAX_PROCESS_ID"),
        ({}, dict(coordinator="a", num_processes=2, process_id=0), "The coordinator is 'a'; expected HOST:PORT"),
        (
            {},
            dict(coordinator="a:1", num_processes=2, process_id=2),
            "This is process 2 of 2; they are counted from 0",
        ),
        (PLAIN | {"JAX_PROCESS_ID": "two"}, {}, "JAX_PROCESS_ID=two: expected a whole number"),
        (MPI, {}, "Nothing says where the first process is (found: num_processes=4, process_id=3)"),
        (JOBSET | {"JAX_NUM_PROCESSES": ""}, {}, "pod 2 of the JobSet run, and nothing says of how many"),
        (JOBSET | {"JOB_INDEX": "1"}, {}, "Nothing says which of them this is"),
        (
            _slurm(0, 3, "n1", "3", CUDA_VISIBLE_DEVICES=EIGHT),
            {},
            "3 processes for 8 GPUs, and some would do nothing",
        ),
    ],
    ids=[
        "count",
        "coordinator",
        "number",
        "no_port",
        "beyond",
        "words",
        "open_mpi_5",
        "jobset",
        "job_of_several",
        "gpus",
    ],
)
def test_what_is_not_enough_is_said(environment, given, said):
    with pytest.raises(UserError, match=re.escape(said)):
        find_cluster(environment, **given)


# Environment -> GPUs of this process among those it sees (None: all), and how many it is to have.
GPUS = {
    "one_per_process": (_slurm(9, 16, "g[1-2]", "8(x2)", CUDA_VISIBLE_DEVICES=EIGHT), (1,), 1),
    "all_of_a_node": (_slurm(1, 2, "g[1-2]", "1(x2)", CUDA_VISIBLE_DEVICES=EIGHT), None, 8),
    "all_of_a_node_that_hides_none": (_slurm(1, 2, "g[1-2]", "1(x2)", SLURM_GPUS_ON_NODE="8"), None, 8),
    "half_a_node": (_slurm(1, 2, "g1", "2", CUDA_VISIBLE_DEVICES=EIGHT), (4, 5, 6, 7), 4),
    "half_the_gpus_allocated": (_slurm(3, 4, "g1", "4", CUDA_VISIBLE_DEVICES="4,5,6,7"), (3,), 1),
    "each_shown_its_own": (_slurm(3, 8, "g1", "8", CUDA_VISIBLE_DEVICES="3"), None, 1),
    "uneven_nodes": (_slurm(2, 3, "g[1-2]", "2,1", CUDA_VISIBLE_DEVICES="0,1"), None, 2),
    "none": (_slurm(0, 2, "c[1-2]", "1(x2)", CUDA_VISIBLE_DEVICES="NoDevFiles"), None, None),
    "not_wanted": (_slurm(0, 2, "g1", "2", CUDA_VISIBLE_DEVICES=EIGHT, JAX_PLATFORMS="cpu"), None, None),
    "told_to_jax": (_slurm(0, 2, "g1", "2", CUDA_VISIBLE_DEVICES=EIGHT, JAX_LOCAL_DEVICE_IDS="0,1"), None, None),
    "open_mpi": (MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "4", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}, (1,), 1),
}


@pytest.mark.parametrize(("environment", "devices", "count"), GPUS.values(), ids=list(GPUS))
def test_every_gpu_of_a_host_has_a_process(environment, devices, count):
    found = find_cluster(environment)
    assert (found.local_device_ids, found.num_gpus) == (devices, count)


def test_hosts_are_named_as_the_launcher_names_them():
    found = find_cluster(_slurm(2, 3, "g[1-2]", "2,1"))
    assert dict(found.hosts) == {0: "g1", 1: "g1", 2: "g2"}
    assert (found.name(2), found.name(7)) == ("2 (g2)", "7")
    assert find_cluster(_slurm(2, 4, "g[1-2]", "2(x2)", SLURM_DISTRIBUTION="cyclic")).hosts == {}
    assert dict(find_cluster(GKE | SLICES).hosts) == {2: "a-0.a", 3: "a-1.a"}
    assert find_cluster(JOBSET).hosts[3] == "run-gpu-0-3.run"


def test_two_steps_of_a_job_meet_at_different_ports():
    ports = {find_cluster(_slurm(0, 2, "n1", "2", SLURM_STEP_ID=str(step))).coordinator for step in range(5)}
    assert len(ports) == 5


METADATA = {
    "agent-worker-number": "1",
    "worker-network-endpoints": "unknown:unknown:10.0.0.2,unknown:unknown:10.0.0.3",
    "tpu-env": "ACCELERATOR_TYPE: 'v5litepod-16'\nWORKER_ID: '1'",
}


def test_a_cloud_tpu_machine_asks_its_metadata_server():
    found = find_cluster({}, query=METADATA.get)
    assert (found.coordinator, found.num_processes, found.process_id) == ("10.0.0.2:8482", 2, 1)
    names = METADATA | {"worker-network-endpoints": "t-w-0,t-w-1,t-w-2,t-w-3"}
    assert find_cluster({}, query=names.get).coordinator == "t-w-0:8482"
    slices = "MEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '1'\nMEGASCALE_COORDINATOR_ADDRESS: '10.1.1.1:8080'"
    found = find_cluster({}, query=(METADATA | {"tpu-env": slices}).get)
    assert (found.coordinator, found.num_processes, found.process_id) == ("10.1.1.1:8482", 4, 3)


@pytest.mark.parametrize(
    ("environment", "query"),
    [({}, {}), ({}, METADATA | {"worker-network-endpoints": "a"}), ({"JAX_PLATFORMS": "cpu"}, METADATA)],
    ids=["no_slice", "one_host", "on_processors"],
)
def test_a_cloud_tpu_machine_works_alone(environment, query):
    assert find_cluster(environment, query=query.get) is None


def test_without_tpu_chips_nobody_is_asked(monkeypatch):
    monkeypatch.setattr(cluster, "has_tpu", lambda: False)
    monkeypatch.setattr(cluster, "_metadata", lambda environment: pytest.fail("the network was asked"))
    assert find_cluster({}) is None


@pytest.mark.parametrize(
    ("listed", "names"),
    [
        ("node001", ["node001"]),
        ("node001,host2", ["node001", "host2"]),
        ("node[001-003],host2", ["node001", "node002", "node003", "host2"]),
        ("node[008,010-011]", ["node008", "node010", "node011"]),
        ("r[1-2]n[1,3]-ib", ["r1n1-ib", "r1n3-ib", "r2n1-ib", "r2n3-ib"]),
    ],
)
def test_node_lists_are_expanded(listed, names):
    assert expand_nodes(listed) == names


def test_a_process_that_srun_has_not_started_is_told():
    assert "4 tasks" in alone_in_an_allocation({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4"})
    for environment in ({}, {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "1"}, _slurm(0, 1, "n1", "1", SLURM_NTASKS="4")):
        assert alone_in_an_allocation(environment) == ""
