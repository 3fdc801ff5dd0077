"""Which processes make up a run, told from the command line and from what launchers put into the environment.

Every launcher says the same three things in its own words: where the first process is, how many there are, and which
of them this one is. What a user says on the command line wins over JAX's own variables, and those over the launcher.
"""

import os
import re
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from vfm_jax.core.backend import has_tpu
from vfm_jax.core.errors import UserError

TPU_PORT = 8482  # any free one will do, and all hosts must mean the same
JOBSET_PORT = 8476
_FIRST_PORT, _NUM_PORTS = 61440, 4096  # above those that Linux gives to outgoing connections by itself
_NVIDIA = "/proc/driver/nvidia/gpus"
_METADATA_SECONDS = 5

Environment = Mapping[str, str]
Query = Callable[[str], str | None]


class Cluster(NamedTuple):
    """The processes of a run, as one of them sees them.

    Attributes:
        kind: who said so, in words.
        coordinator: HOST:PORT of the first process.
        num_processes: of the run, two or more.
        process_id: number of this one, from 0.
        hosts: name of the host of each process, as far as the launcher tells.
        local_device_ids: the GPUs of this process, counted among those it may see; None for all of them.
        num_gpus: how many GPUs this process is to have; None where nothing says so, and away from GPUs.
    """

    kind: str
    coordinator: str
    num_processes: int
    process_id: int
    hosts: Mapping[int, str] = {}
    local_device_ids: tuple[int, ...] | None = None
    num_gpus: int | None = None

    def name(self, process: int) -> str:
        """A process in words: "3 (node-b)"."""
        host = self.hosts.get(process)
        return f"{process} ({host})" if host else str(process)


def find_cluster(
    environment: Environment,
    *,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    query: Query | None = None,
) -> Cluster | None:
    """The run that this process is one of; None where it works alone.

    Nothing is asked of the network, but on a Cloud TPU machine its own metadata server.

    Args:
        environment: of this process.
        coordinator: HOST:PORT; what is given here wins over what the environment says.
        num_processes: of the run; 1 is a process alone, wherever it was started.
        process_id: number of this one.
        query: an attribute of the metadata server of a Cloud TPU machine, or None; for tests.

    Raises:
        UserError: what is said is not enough, or is no address, or no number below the number of processes.
    """
    given = {
        "coordinator": coordinator or environment.get("JAX_COORDINATOR_ADDRESS") or None,
        "num_processes": _whole(environment, "JAX_NUM_PROCESSES") if num_processes is None else num_processes,
        "process_id": _whole(environment, "JAX_PROCESS_ID") if process_id is None else process_id,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if given.get("num_processes") == 1:
        return None
    told: dict[str, Any] | None = None
    if len(given) < 3:
        finders = (
            _gke_tpu,
            _open_mpi,
            _slurm,
            _jobset,
            lambda env: _cloud_tpu(env, query),
        )  # mpirun is used in SLURM
        told = next((found for finder in finders if (found := finder(environment)) is not None), None)
    found = (told or {}) | given
    if not found or found.get("num_processes") == 1:
        return None
    if port := environment.get("JAX_COORDINATOR_PORT"):
        found["coordinator"] = re.sub(r"(:\d+)?$", f":{port}", str(found.get("coordinator", "")), count=1)
    return _checked({"kind": "what was given"} | found)


def alone_in_an_allocation(environment: Environment) -> str:
    """A line for who has begun one process inside of a SLURM allocation of several tasks; "" elsewhere."""
    tasks = _whole(environment, "SLURM_NTASKS") or 1
    if "SLURM_JOB_ID" not in environment or _in_a_step(environment) or tasks == 1:
        return ""
    return f"This SLURM allocation has {tasks} tasks, and srun has not started this process: it works alone."


def _checked(found: dict[str, Any]) -> Cluster:
    wanted = {
        "coordinator": ("where the first process is", "--coordinator=HOST:PORT", "JAX_COORDINATOR_ADDRESS"),
        "num_processes": ("how many processes there are", "--num-processes=N", "JAX_NUM_PROCESSES"),
        "process_id": ("which of them this is", "--process-id=I", "JAX_PROCESS_ID"),
    }
    known = ", ".join(f"{name}={found[name]}" for name in wanted if found.get(name) is not None)
    for name, (what, flag, variable) in wanted.items():
        if found.get(name) is None:
            raise UserError(f"Nothing says {what} (found: {known}). Give {flag}, or set {variable}.")
    host, _, port = found["coordinator"].rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise UserError(f"The coordinator is {found['coordinator']!r}; expected HOST:PORT, such as node-1:8476.")
    count, number = found["num_processes"], found["process_id"]
    if not 0 <= number < count:
        raise UserError(f"This is process {number} of {count}; they are counted from 0, so the last is {count - 1}.")
    return Cluster(**found)


def _whole(environment: Environment, name: str) -> int | None:
    text = environment.get(name)
    if not text:
        return None
    if not text.isdigit():
        raise UserError(f"{name}={text}: expected a whole number.")
    return int(text)


def _port(job: str) -> int:
    """The same number on every host, and hardly ever that of another job."""
    return _FIRST_PORT + zlib.crc32(job.encode()) % _NUM_PORTS


def _slurm(environment: Environment) -> dict[str, Any] | None:
    """A task of a step that srun has started; one of one task works alone, and so does a shell of an allocation."""
    if not _in_a_step(environment):
        return None
    count = _whole(environment, "SLURM_STEP_NUM_TASKS") or _whole(environment, "SLURM_NTASKS") or 1
    if count == 1:
        return {"num_processes": 1}
    number, local = (_whole(environment, name) or 0 for name in ("SLURM_PROCID", "SLURM_LOCALID"))
    nodes = expand_nodes(environment["SLURM_STEP_NODELIST"])
    tasks = _tasks_per_node(environment, count, len(nodes))
    devices, num_gpus = _gpus(
        environment, local, tasks[min(_whole(environment, "SLURM_NODEID") or 0, len(nodes) - 1)]
    )
    placed = [node for node, number in zip(nodes, tasks, strict=True) for _ in range(number)]
    in_blocks = environment.get("SLURM_DISTRIBUTION", "block").startswith("block") or len(nodes) == count
    job = f"{environment['SLURM_JOB_ID']}.{environment.get('SLURM_STEP_ID', '')}"
    return {
        "kind": "SLURM",
        "coordinator": f"{nodes[0]}:{_port(job)}",
        "num_processes": count,
        "process_id": number,
        "hosts": dict(enumerate(placed)) if in_blocks and len(placed) == count else {},
        "local_device_ids": devices,
        "num_gpus": num_gpus,
    }


def _in_a_step(environment: Environment) -> bool:
    return {"SLURM_JOB_ID", "SLURM_PROCID", "SLURM_STEP_NODELIST"} <= set(environment)


def expand_nodes(listed: str) -> list[str]:
    """The names in SLURM's short form: "node[001-003,7],gpu" is node001, node002, node003, node7, gpu."""
    nodes = []
    for part in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", listed):
        names = [""]
        for piece in re.findall(r"[^\[]+|\[[^\]]*\]", part):
            ends = [n for span in piece[1:-1].split(",") for n in _span(span)] if piece[0] == "[" else [piece]
            names = [name + end for name in names for end in ends]
        nodes += names
    return nodes


def _span(text: str) -> list[str]:
    low, _, high = text.partition("-")
    return [f"{n:0{len(low)}d}" for n in range(int(low), int(high or low) + 1)]


def _tasks_per_node(environment: Environment, count: int, num_nodes: int) -> list[int]:
    """SLURM writes "4(x2),1" for 4, 4 and 1."""
    text = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("SLURM_TASKS_PER_NODE") or ""
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    tasks = [int(number) for number, times in found for _ in range(int(times or 1))]
    return tasks if len(tasks) == num_nodes else [-(-count // num_nodes)] * num_nodes


def _gpus(environment: Environment, local: int, per_host: int) -> tuple[tuple[int, ...] | None, int | None]:
    """Of this host's GPUs those of process `local` of `per_host` there (None: all it sees), and how many they are.

    JAX by itself gives every process that a launcher has started one GPU, and seven of eight do nothing where there
    is one process for a host.
    """
    if environment.get("JAX_PLATFORMS") == "cpu" or "JAX_LOCAL_DEVICE_IDS" in environment:  # JAX reads the latter
        return None, None
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        total = len([name for name in visible.split(",") if name and name not in ("-1", "NoDevFiles")])
    else:
        total = _whole(environment, "SLURM_GPUS_ON_NODE") or (
            len(os.listdir(_NVIDIA)) if os.path.isdir(_NVIDIA) else 0
        )
    if not total:
        return None, None
    if per_host == 1 or (total == 1 and visible is not None):  # the launcher shows each process its own
        return None, total
    if total % per_host:
        raise UserError(
            f"This host has {per_host} processes for {total} GPUs, and some would do nothing. Start one process for "
            f"each GPU, or one for the host."
        )
    share = total // per_host
    return tuple(range(local * share, (local + 1) * share)), share


def _open_mpi(environment: Environment) -> dict[str, Any] | None:
    count = _whole(environment, "OMPI_COMM_WORLD_SIZE")
    if count is None:
        return None
    if count == 1:
        return {"num_processes": 1}
    local, per_host = (
        _whole(environment, f"OMPI_COMM_WORLD_LOCAL_{name}") or default
        for name, default in (("RANK", 0), ("SIZE", 1))
    )
    devices, num_gpus = _gpus(environment, local, per_host)
    found: dict[str, Any] = {
        "kind": "Open MPI",
        "num_processes": count,
        "process_id": _whole(environment, "OMPI_COMM_WORLD_RANK"),
        "local_device_ids": devices,
        "num_gpus": num_gpus,
    }
    # "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911": the host of mpirun, which is the first one. Open MPI 5 tells
    # nobody; on one host nothing needs telling.
    launcher = environment.get("OMPI_MCA_orte_hnp_uri", "")
    job = launcher.partition(".")[0] or environment.get("PMIX_NAMESPACE", "")
    if per_host == count:
        found["coordinator"] = f"127.0.0.1:{_port(job)}"
    elif match := re.search(r"tcp://([^,:]+)|tcp6://\[([^,\]]+)", launcher):
        host = match[1] or f"[{match[2]}]"
        found["coordinator"] = f"{host}:{_port(job)}"
    return found


def _jobset(environment: Environment) -> dict[str, Any] | None:
    """A pod of an Indexed Job. Kubernetes tells each pod its own number, and nobody how many there are."""
    index = _whole(environment, "JOB_COMPLETION_INDEX")
    if index is None:
        return None
    name, group = environment.get("JOBSET_NAME"), environment.get("REPLICATED_JOB_NAME")
    count = _whole(environment, "JAX_NUM_PROCESSES")
    if not count:
        if name:
            raise UserError(
                f"This is pod {index} of the JobSet {name}, and nothing says of how many. Set JAX_NUM_PROCESSES in "
                "its manifest: the number of pods, or 1 where each works alone."
            )
        return None
    found: dict[str, Any] = {"kind": "Kubernetes", "num_processes": count}
    if environment.get("JOB_INDEX", "0") == "0":  # of several jobs only the manifest knows how they are counted
        found["process_id"] = index
    if name and group:
        found["hosts"] = {pod: f"{name}-{group}-0-{pod}.{name}" for pod in range(count)}
        found["coordinator"] = f"{found['hosts'][0]}:{JOBSET_PORT}"
    return found


def _gke_tpu(environment: Environment) -> dict[str, Any] | None:
    """A TPU host in Google's Kubernetes, which tells each pod all names of its slice."""
    names = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    number = _whole(environment, "TPU_WORKER_ID")
    if not names or number is None or not _may_use_tpu(environment):
        return None
    return _slices("TPU in GKE", [name.partition(":")[0] for name in names.split(",")], number, environment)


def _cloud_tpu(environment: Environment, query: Query | None) -> dict[str, Any] | None:
    """A Cloud TPU machine, whose metadata server knows the other hosts of its slice."""
    if not _may_use_tpu(environment) or "TPU_SKIP_MDS_QUERY" in environment:
        return None
    if query is None:
        if not has_tpu():
            return None
        query = _metadata(environment)
    number, endpoints = query("agent-worker-number"), query("worker-network-endpoints")
    if not number or not endpoints:
        return None
    # Either names, or NAME:ID:ADDRESS.
    hosts = [parts[2] if len(parts := worker.split(":")) == 3 else parts[0] for worker in endpoints.split(",")]
    rows = (row.partition(":") for row in (query("tpu-env") or "").splitlines())
    slices = {name.strip(): value.strip().strip("'") for name, _, value in rows if name.startswith("MEGASCALE_")}
    return _slices("Cloud TPU", hosts, int(number), {**slices, **environment})


def _slices(kind: str, hosts: list[str], number: int, environment: Environment) -> dict[str, Any]:
    """Processes are counted slice by slice; of the other slices the names are not known, but that of the first."""
    num_slices = _whole(environment, "MEGASCALE_NUM_SLICES") or 1
    first = len(hosts) * (_whole(environment, "MEGASCALE_SLICE_ID") or 0)
    leader = environment.get("MEGASCALE_COORDINATOR_ADDRESS", "").partition(":")[0]
    return {
        "kind": kind,
        "coordinator": f"{(leader if num_slices > 1 and leader else hosts[0])}:{TPU_PORT}",
        "num_processes": len(hosts) * num_slices,
        "process_id": first + number,
        "hosts": {first + i: host for i, host in enumerate(hosts)},
    }


def _may_use_tpu(environment: Environment) -> bool:
    platforms = environment.get("JAX_PLATFORMS", "")
    return not platforms or "tpu" in platforms.split(",")


def _metadata(environment: Environment) -> Query:
    server = environment.get("GCE_METADATA_IP", "metadata.google.internal")

    def query(attribute: str) -> str | None:
        import urllib.request  # a tenth of a second, of TPU machines alone

        url = f"http://{server}/computeMetadata/v1/instance/attributes/{attribute}"
        request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
        try:
            with urllib.request.urlopen(request, timeout=_METADATA_SECONDS) as answer:
                return answer.read().decode()
        except OSError:  # there is no such attribute, as no slice; or no server, as this is no machine of Google's
            return None

    return query
