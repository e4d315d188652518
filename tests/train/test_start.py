"""How the processes of a run find each other: by arguments, by what started them, and what is said where they cannot."""

import socket

import jax
import pytest
from jax._src.clusters import cloud_tpu_cluster

from brh_jax.errors import UserError
from brh_jax.train.parallel import start_processes

SLURM = {"SLURM_JOB_ID": "77", "SLURM_STEP_NODELIST": "node[001-002]", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}
MPI = {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911", "OMPI_COMM_WORLD_RANK": "1"}
TPU = {"agent-worker-number": "1", "tpu-env": "ACCELERATOR_TYPE: 'v5litepod-16'"}
OLD, NEW = "unknown:unknown:10.0.0.2,unknown:unknown:10.0.0.3", "host-0,host-1"


@pytest.fixture
def started(monkeypatch):
    """The arguments of every jax.distributed.initialize, which does nothing."""
    calls = []
    others = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "TPU_WORKER_HOSTNAMES", "TPU_SKIP_MDS_QUERY", "KUBERNETES_SERVICE_HOST")
    for name in (*SLURM, *MPI, *others):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(jax.distributed, "initialize", lambda **given: calls.append(given))
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    return calls


def metadata_of(monkeypatch, **values):
    """A TPU host, of which the metadata server says this and the environment nothing."""
    values = {**TPU, **{name.replace("_", "-"): value for name, value in values.items()}}
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    monkeypatch.setattr(cloud_tpu_cluster, "get_metadata", lambda key: (values.get(key, ""), 200 if key in values else 404))


@pytest.mark.parametrize(("workers", "several"), [(OLD, True), (NEW, True), ("host-0", False)])
def test_a_tpu_slice_is_known_by_its_metadata_server(started, monkeypatch, workers, several):
    metadata_of(monkeypatch, worker_network_endpoints=workers)
    start_processes()
    assert started == ([{}] if several else [])


def test_a_tpu_slice_of_kubernetes_is_known_by_the_environment(started, monkeypatch):
    metadata_of(monkeypatch)
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("TPU_WORKER_ID", "1")
    for names, calls in (("host-0", 0), ("host-0,host-1", 1)):
        monkeypatch.setenv("TPU_WORKER_HOSTNAMES", names)
        start_processes()
        assert len(started) == calls


def test_a_metadata_server_that_does_not_answer_is_said(started, monkeypatch, capsys):
    def broken(key):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    monkeypatch.setattr(cloud_tpu_cluster, "get_metadata", broken)
    start_processes()
    assert not started
    assert (
        "warning: GceTpuCluster cannot tell how many processes there are (no route to host); going on" in capsys.readouterr().out
    )


@pytest.mark.parametrize(("number", "environment"), [("SLURM_NTASKS", SLURM), ("OMPI_COMM_WORLD_SIZE", MPI)])
def test_tasks_of_a_scheduler(started, monkeypatch, number, environment):
    """A single task is a run of its own: jax would give one of SLURM one GPU of all that it has."""
    monkeypatch.setenv(number, "2")
    start_processes()
    assert not started  # a batch script, before srun or mpirun
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_RANK", "0")
    start_processes()
    assert started == [{}]
    monkeypatch.setenv(number, "1")
    start_processes()
    assert len(started) == 1


def test_a_port_in_use_is_said(started, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"port {port} of this machine.*\(Address already in use\): another run may have it"):
            start_processes(f"127.0.0.1:{port}", 2, 0)
        start_processes(f"127.0.0.1:{port}", 2, 1)  # it is the first process's
        for name, value in SLURM.items():
            monkeypatch.setenv(name, value)
        for name, value in {"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "JAX_COORDINATOR_PORT": str(port)}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(UserError, match="or set JAX_COORDINATOR_PORT"):
            start_processes()
    assert len(started) == 1
    start_processes(f"127.0.0.1:{port}", 2, 0)
    assert len(started) == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("", 2, -1), "go together: give all three or none"),
        (("", -2, -1), "go together"),
        (("10.0.0.1", 2, 0), r"coordinator is '10.0.0.1': expected HOST:PORT of the first process"),
        (("10.0.0.1:99999", 2, 0), "expected HOST:PORT"),
        (("10.0.0.1:5000", -2, 0), "num_processes is -2: expected a positive number"),
        (("10.0.0.1:5000", 2, 2), "process_id is 2: expected 0 to 1, another in every process"),
        (("10.0.0.1:5000", 2, -3), "process_id is -3: expected 0 to 1"),
    ],
)
def test_arguments_that_are_no_place_in_a_run(started, given, message):
    with pytest.raises(UserError, match=message):
        start_processes(*given)
    assert not started
