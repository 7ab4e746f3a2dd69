"""Real Slurm clusters on this host, for tests and for trying things out: no systemd, nothing outside one folder.

A cluster has its own munged (so that no other user of the host can submit in our name), slurmctld and one slurmd for
each virtual node; all listen on the loopback only. Nodes may have more cores than the host, and their GPUs are files.
``python -m firstkit.testing.slurm_lab up FOLDER`` starts two clusters, ``down FOLDER`` ends them.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from firstkit.schedulers.processes import ProcessId, is_alive, process_id, send_signal

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol", "sinfo", "srun")
PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
START_LIMIT_S = 20.0
STOP_LIMIT_S = 15.0
END_LIMIT_S = 10.0
SOCKET_LIMIT = 107
STATE = "processes.json"

_CONF = """\
ClusterName={name}
FirstJobId={first_job_id}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
PriorityType=priority/basic
SchedulerType=sched/backfill
SchedulerParameters={scheduling}
SlurmdParameters=config_overrides
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
ReturnToService=2
SlurmctldTimeout=10
SlurmdTimeout={slurmd_timeout_s}
MinJobAge={min_job_age_s}
InactiveLimit=0
OverTimeLimit=0
KillWait=5
BatchStartTimeout=10
CompleteWait=0
MessageTimeout=10
DefMemPerCPU=100
GresTypes=gpu
{nodes}
PartitionName=gpu Nodes={all_nodes} Default=YES MaxTime=24:00:00 DefaultTime=24:00:00 State=UP OverSubscribe=NO
PartitionName=debug Nodes={first_node} MaxTime=00:30:00 DefaultTime=00:05:00 State=UP
"""
_SCHEDULING = (
    "batch_sched_delay=0,sched_interval=2,sched_min_interval=0,bf_interval=1,bf_resolution=1,sched_max_job_start=0"
)
"""A site schedules every 30 s or so; here nobody wants to wait."""


class LabError(Exception):
    """A cluster of the lab could not be made; the message says why."""


def is_available() -> tuple[bool, str]:
    """Whether clusters can be run here, and if not, why."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    return not missing, f"not installed: {', '.join(missing)}" if missing else ""


class SlurmCluster:
    """One cluster below ``folder``; ``start`` it, ``stop`` it, and in between let its parts fail.

    ``env`` is what commands need to reach it. ``ports``: of slurmctld and then of each node; free ones by default.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        *,
        nodes: int = 1,
        cpus: int = 16,
        gpus_per_node: int = 0,
        gpu_type: str = "a100",
        memory_mib: int = 64000,
        base_port: int | None = None,
        first_job_id: int = 1,
        min_job_age_s: int = 300,
        slurmd_timeout_s: int = 10,
        extra: str = "",
    ) -> None:
        self.name = name
        self.folder = folder.absolute()
        self.nodes = [f"{name}-n{number}" for number in range(1, nodes + 1)]
        self.conf = self.folder / "slurm.conf"
        self.env = {"SLURM_CONF": str(self.conf), "PATH": PATH}
        self._cpus, self._gpus, self._gpu_type, self._memory_mib = cpus, gpus_per_node, gpu_type, memory_mib
        self._base_port = base_port
        self._first_job_id = first_job_id
        self._min_job_age_s, self._slurmd_timeout_s = min_job_age_s, slurmd_timeout_s
        self._extra = extra
        self._processes: dict[str, ProcessId] = {}
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    def __repr__(self) -> str:
        return f"<SlurmCluster {self.name} in {self.folder}>"

    # -- its life ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Write the configuration, start all daemons, and wait until every node is idle. Raises LabError."""
        is_there, why = is_available()
        if not is_there:
            raise LabError(why)
        self._write_files()
        try:
            self._start_munged()
            self.start_controller()
            for node in self.nodes:
                self.start_node(node)
            self.wait_idle()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End all jobs and daemons. The folder, with the logs, stays."""
        if self._is_up("slurmctld"):
            with contextlib.suppress(LabError):
                self.end_jobs()
        for name in [*self._processes][::-1]:
            self._end(name, signal.SIGTERM)
        self._sweep()
        (self.folder / STATE).unlink(missing_ok=True)

    def end_jobs(self) -> None:
        """Cancel all jobs and wait until they have gone."""
        self._run("scancel", f"--user={_user()}", check=False)
        _wait(lambda: not self.run("squeue", "-h"), END_LIMIT_S, "all jobs gone")

    def wait_idle(self) -> None:
        """Until all nodes answer and have nothing to do."""
        _wait(lambda: set(self.node_states().values()) == {"idle"}, START_LIMIT_S, f"{self.name}: all nodes idle")

    def processes(self) -> dict[str, ProcessId]:
        """The daemons that run, by name: munged, slurmctld, slurmd-NODE."""
        return {name: process for name, process in self._processes.items() if is_alive(process)}

    # -- what may go wrong ---------------------------------------------------------------------------------------

    def kill_controller(self, number: int = signal.SIGKILL) -> None:
        self._end("slurmctld", number)

    def start_controller(self) -> None:
        """Start slurmctld and wait until it answers. Jobs and nodes of before are known to it again."""
        self._spawn("slurmctld", ["slurmctld", "-D", "-f", str(self.conf)])
        _wait(lambda: self._run("scontrol", "ping", check=False).returncode == 0, START_LIMIT_S, "slurmctld")

    def save_state(self, job_number: str) -> None:
        """Until slurmctld has written down what it knows of a job. After a sudden death it would start one anew of
        which it had only written that it waits."""
        asked_at, path = time.time(), self.folder / "state" / "job_state"
        self.run("scontrol", "update", f"JobId={job_number}", "Comment=save it")
        _wait(lambda: path.exists() and path.stat().st_mtime > asked_at, START_LIMIT_S, "slurmctld saves its state")

    def stop_answering(self) -> None:
        """slurmctld lives but does not answer: commands hang."""
        send_signal(self._processes["slurmctld"], signal.SIGSTOP)

    def answer_again(self) -> None:
        send_signal(self._processes["slurmctld"], signal.SIGCONT)

    def kill_node(self, node: str, number: int = signal.SIGKILL) -> None:
        """End the slurmd of a node; its jobs go on until slurmctld has missed it for ``slurmd_timeout_s``."""
        self._end(f"slurmd-{node}", number)

    def start_node(self, node: str) -> None:
        self._spawn(f"slurmd-{node}", ["slurmd", "-D", "-f", str(self.conf), "-N", node])

    def set_node(self, node: str, state: str, reason: str = "test") -> None:
        """``state``: DRAIN, DOWN, RESUME ..."""
        self.run("scontrol", "update", f"NodeName={node}", f"State={state}", f"Reason={reason}")

    def node_states(self) -> dict[str, str]:
        lines = self._run("sinfo", "-h", "-N", "-o", "%N %T", check=False).stdout.split("\n")
        return dict(line.split()[:2] for line in lines if line.strip())

    # -- commands ------------------------------------------------------------------------------------------------

    def run(self, *argv: str) -> str:
        """Standard output of a Slurm command on this cluster. Raises LabError when it fails."""
        return self._run(*argv).stdout.strip()

    def _run(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            argv, env={**os.environ, **self.env}, capture_output=True, text=True, timeout=30, check=False
        )
        if check and done.returncode != 0:
            raise LabError(f"{' '.join(argv)}: exit status {done.returncode}: {done.stderr.strip()}")
        return done

    # -- inside --------------------------------------------------------------------------------------------------

    def _write_files(self) -> None:
        for name in ("state", "log", "munge", "dev", *(f"spool/{node}" for node in self.nodes)):
            (self.folder / name).mkdir(mode=0o755, parents=True, exist_ok=True)
        if len(str(self.folder / "munge" / "socket")) > SOCKET_LIMIT - 20:
            raise LabError(f"{self.folder}: too long a path for sockets")
        key = self.folder / "munge" / "key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        for number in range(self._gpus):
            with contextlib.suppress(FileExistsError):
                (self.folder / "dev" / f"gpu{number}").symlink_to("/dev/null")
        ports = _ports(self._base_port, 1 + len(self.nodes))
        self.conf.write_text(self._conf_text(ports) + self._extra)
        (self.folder / "gres.conf").write_text(self._gres_text())

    def _conf_text(self, ports: list[int]) -> str:
        host = socket.gethostname().split(".")[0]
        gres = f" Gres=gpu:{self._gpu_type}:{self._gpus}" if self._gpus else ""
        nodes = [
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={self._cpus} Boards=1 "
            f"SocketsPerBoard=1 CoresPerSocket={self._cpus} ThreadsPerCore=1 RealMemory={self._memory_mib}{gres} "
            f"Feature={self._gpu_type} State=UNKNOWN"
            for node, port in zip(self.nodes, ports[1:], strict=True)
        ]
        return _CONF.format(
            name=self.name, first_job_id=self._first_job_id, host=host, port=ports[0], user=_user(),
            folder=self.folder, scheduling=_SCHEDULING, slurmd_timeout_s=self._slurmd_timeout_s,
            min_job_age_s=self._min_job_age_s, nodes="\n".join(nodes), all_nodes=",".join(self.nodes),
            first_node=self.nodes[0],
        )  # fmt: skip

    def _gres_text(self) -> str:
        """A plain ``Count=`` is dropped without a word where no such device exists, so each GPU has its file."""
        if not self._gpus:
            return "AutoDetect=off\n"
        files = f"{self.folder}/dev/gpu[0-{self._gpus - 1}]" if self._gpus > 1 else f"{self.folder}/dev/gpu0"
        return f"AutoDetect=off\nNodeName={','.join(self.nodes)} Name=gpu Type={self._gpu_type} File={files}\n"

    def _start_munged(self) -> None:
        folder = self.folder / "munge"
        argv = ["munged", "--foreground", f"--key-file={folder}/key", f"--socket={folder}/socket", "--num-threads=2"]
        argv += [f"--pid-file={folder}/pid", f"--log-file={folder}/log", f"--seed-file={folder}/seed", "--force"]
        self._spawn("munged", argv)
        _wait((folder / "socket").exists, START_LIMIT_S, "munged")

    def _spawn(self, name: str, argv: list[str]) -> None:
        """Start a daemon in a session of its own, known by its pid, also to a later ``down``."""
        with (self.folder / "log" / f"{name}.out").open("ab") as log:
            child = subprocess.Popen(
                [shutil.which(argv[0], path=PATH) or argv[0], *argv[1:]],
                env={**os.environ, **self.env}, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        self._children[child.pid] = child
        self._processes[name] = process_id(child.pid)
        (self.folder / STATE).write_text(json.dumps({key: value.__dict__ for key, value in self._processes.items()}))

    def _is_up(self, name: str) -> bool:
        return name in self._processes and is_alive(self._processes[name])

    def _end(self, name: str, number: int) -> None:
        process = self._processes.get(name)
        if process is None:
            return
        send_signal(process, number)
        send_signal(process, signal.SIGCONT)
        try:
            _wait(lambda: not is_alive(process), STOP_LIMIT_S, name)
        except LabError:
            send_signal(process, signal.SIGKILL)
            _wait(lambda: not is_alive(process), STOP_LIMIT_S, name)
        child = self._children.pop(process.pid, None)
        if child is not None:
            child.wait(STOP_LIMIT_S)  # its first thread may be gone before the others

    def _sweep(self) -> None:
        """Kill what jobs left behind, and the processes of Slurm that watched them."""
        _wait(lambda: not [_kill(pid) for pid in _left_behind(str(self.conf))], STOP_LIMIT_S, "all processes gone")

    @classmethod
    def found(cls, folder: Path) -> SlurmCluster:
        """The cluster that somebody else started in ``folder``, to be stopped."""
        cluster = cls(folder.name, folder)
        text = (folder / STATE).read_text()
        cluster._processes = {name: ProcessId(**process) for name, process in json.loads(text).items()}
        return cluster


def _user() -> str:
    """Whom we are, whatever the environment says."""
    return pwd.getpwuid(os.geteuid()).pw_name


def _left_behind(conf: str) -> list[int]:
    """Pids of what was started with this cluster's configuration by slurmd: steps, and processes of jobs."""
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            environ = b"\0" + Path("/proc", name, "environ").read_bytes()
            command = Path("/proc", name, "cmdline").read_bytes()
        except OSError:
            continue  # it has ended, or is another user's
        is_of_job = b"\0SLURM_JOB_ID=" in environ or b"slurmstepd" in command
        if is_of_job and f"\0SLURM_CONF={conf}\0".encode() in environ:
            found.append(int(name))
    return found


def _kill(pid: int) -> int:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return pid


def _ports(base: int | None, count: int) -> list[int]:
    """``count`` ports from ``base`` on, or free ones: all are held at once while they are looked for."""
    if base is not None:
        return list(range(base, base + count))
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def _wait(is_so: Callable[[], bool], limit_s: float, what: str) -> None:
    give_up_at = time.monotonic() + limit_s
    while not is_so():
        if time.monotonic() > give_up_at:
            raise LabError(f"{what}: not within {limit_s:g} s")
        time.sleep(0.02)


def up(folder: Path) -> list[SlurmCluster]:
    """The two clusters of the lab: ``sophia`` with 3 nodes of 8 GPUs, ``polaris`` with 2 nodes of 4."""
    clusters = [
        SlurmCluster("sophia", folder / "sophia", nodes=3, gpus_per_node=8),
        SlurmCluster("polaris", folder / "polaris", nodes=2, gpus_per_node=4),
    ]
    for cluster in clusters:
        if (cluster.folder / STATE).exists():
            SlurmCluster.found(cluster.folder).stop()
        cluster.start()
    return clusters


def down(folder: Path) -> None:
    """End what ``up`` started and remove it all."""
    for state in sorted(folder.glob(f"*/{STATE}")):
        SlurmCluster.found(state.parent).stop()
    for name in ("sophia", "polaris"):
        shutil.rmtree(folder / name, ignore_errors=True)


def main(argv: list[str]) -> int:
    """``up FOLDER`` or ``down FOLDER``."""
    if len(argv) != 2 or argv[0] not in ("up", "down"):
        sys.stderr.write("usage: python -m firstkit.testing.slurm_lab up|down FOLDER\n")
        return 2
    folder = Path(argv[1]).absolute()
    try:
        if argv[0] == "down":
            down(folder)
            return 0
        for cluster in up(folder):
            sys.stdout.write(f"{cluster.name}: SLURM_CONF={cluster.conf}\n")
    except LabError as exc:
        sys.stderr.write(f"{exc}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
