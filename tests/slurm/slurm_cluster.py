"""A real Slurm cluster of two nodes on one machine: Debian's daemons, started in a second and taken down again.

Everything lives below one folder; daemons are children of this process, ports are free ones, /etc is left alone. Learnt
from a recipe of ours whose pitfalls are told here where they bite. The nodes are one machine: what this cannot show is
real GPUs, several clocks and file systems, and limits that are enforced.
"""

import ctypes
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

NODES = ("node1", "node2")
CPUS_PER_NODE = 4
"""More than the machine may have: Slurm is told to believe it."""
GRACE = 30
"""Seconds between the signal of a preemption and the end."""
REQUEUE_HOLD = 5
"""Seconds that a requeued job waits, and one more; Slurm's default is 120 and its least is 5."""
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "scontrol", "sinfo", "squeue", "srun")
ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT"}
"""States of a job that does not come back."""

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/socket,cred_expire={hold}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=1000
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,sched_min_interval=0,bf_interval=2,batch_sched_delay=0
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait=20
MessageTimeout=30
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs={cpus} RealMemory=4000 State=UNKNOWN
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs={cpus} RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=node1,node2 Default=YES State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace}
PartitionName=urgent Nodes=node1,node2 State=UP PriorityTier=10 PreemptMode=OFF
"""


class SlurmCluster:
    """The cluster while its `with` lasts. The path of `folder` must be short: those of sockets hold 107 characters."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder).resolve()
        self.configuration = self.folder / "slurm.conf"
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def environment(self) -> dict[str, str]:
        """What commands and jobs of this cluster run with, as in an activated virtual environment, without GPUs.

        Nothing is left of a cluster that the tests themselves run in.
        """
        foreign = ("SLURM", "SBATCH", "SRUN", "SQUEUE", "SCANCEL", "PMI")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        path = f"{Path(sys.executable).parent}:{clean['PATH']}:/usr/sbin:/sbin"
        return {**clean, "PATH": path, "CUDA_VISIBLE_DEVICES": "", "SLURM_CONF": str(self.configuration)}

    def __enter__(self) -> "SlurmCluster":
        missing = [program for program in PROGRAMS if shutil.which(program, path=self.environment["PATH"]) is None]
        if missing:
            raise RuntimeError(f"no {', '.join(missing)} on this machine; `make test-slurm` installs Slurm on Debian")
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if "slurmctld" in self._daemons and self._daemons["slurmctld"].poll() is None:
            self.run("scancel", "--user", getpass.getuser(), "--full", check=False)
            self.run("scancel", "--user", getpass.getuser(), check=False)
            deadline = time.monotonic() + 30
            while self.run("squeue", "--noheader", check=False) and time.monotonic() < deadline:
                time.sleep(0.2)
        for daemon in reversed(self._daemons.values()):
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self._daemons.clear()
        for process in self.processes():  # a step's keeper leaves its slurmd, and outlives it
            os.kill(process, signal.SIGKILL)

    def _start(self) -> None:
        for name in ("state", "spool", "log", "munge"):
            (self.folder / name).mkdir()
        self.folder.chmod(0o755)  # munge refuses a socket below a folder that others cannot enter
        munge = self.folder / "munge"
        key = munge / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        host = socket.gethostname().split(".")[0]
        values = {"host": host, "user": getpass.getuser(), "folder": self.folder, "ports": free_ports(3)}
        content = CONFIGURATION.format(**values, cpus=CPUS_PER_NODE, grace=GRACE, hold=REQUEUE_HOLD)
        self.configuration.write_text(content)
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupMountpoint=/nonexistent\n")
        places = [f"--{name}-file={munge / name}" for name in ("key", "pid", "log", "seed")]
        self._daemon("munged", "munged", "--foreground", f"--socket={munge / 'socket'}", *places)
        self.until((munge / "socket").exists, "munge's socket")
        self._daemon("slurmctld", "slurmctld", "-D", "-c")
        for node in NODES:
            self._daemon(node, "slurmd", "-D", "-N", node)
        self.until(self.is_idle, "idle nodes")

    def _daemon(self, name: str, program: str, *arguments: str) -> None:
        with (self.folder / "log" / f"{name}.out").open("wb") as log:
            self._daemons[name] = subprocess.Popen(
                [self._find(program), *arguments],
                env=self.environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )

    def _find(self, program: str) -> str:
        return shutil.which(program, path=self.environment["PATH"]) or program

    def is_idle(self) -> bool:
        """All nodes are up, and no job runs."""
        lines = self.run(
            "sinfo", "--noheader", "--Node", "--partition=main", "--format=%N %t", check=False
        ).splitlines()
        return sorted(lines) == [f"{node} idle" for node in NODES]

    def until(self, condition: Callable[[], object], what: str, seconds: float = 60) -> None:
        """Wait for a condition; raises TimeoutError with the tails of the daemons' logs."""
        deadline = time.monotonic() + seconds
        while not condition():
            dead = [name for name, daemon in self._daemons.items() if daemon.poll() is not None]
            if dead or time.monotonic() > deadline:
                why = f"{dead} ended" if dead else f"{seconds:.0f} s have passed"
                raise TimeoutError(f"waited for {what}, but {why}\n{self.logs()}")
            time.sleep(0.1)

    def logs(self) -> str:
        """The last lines of every daemon's log."""
        files = sorted((self.folder / "log").iterdir())
        return "\n".join("\n".join([f"== {f.name}", *f.read_text(errors="replace").splitlines()[-15:]]) for f in files)

    def run(self, *command: str | Path, check: bool = True, folder: Path | None = None) -> str:
        """What a command prints on stdout, run in `folder`; raises RuntimeError with all it printed if it fails."""
        words = [self._find(str(command[0])), *map(str, command[1:])]
        done = subprocess.run(words, env=self.environment, cwd=folder, text=True, capture_output=True, timeout=120)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(words)}: status {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """What Slurm knows of a job; nothing if it knows none."""
        line = self.run("scontrol", "--oneliner", "show", "job", number, check=False)
        return dict(word.split("=", 1) for word in line.split() if "=" in word)

    def state(self, number: str) -> str:
        """A job's state, such as RUNNING."""
        return self.job(number).get("JobState", "UNKNOWN")

    def wait(self, number: str, *states: str, seconds: float = 120) -> str:
        """Wait until a job is in one of `states`, by default one of those that it does not leave; returns it."""
        wanted = set(states) or ENDED
        self.until(lambda: self.state(number) in wanted | ENDED, f"job {number} to be {sorted(wanted)}", seconds)
        return self.state(number)

    def processes(self, **variables: str) -> list[int]:
        """Processes of this cluster and its jobs: those whose environment names it, and has these variables too."""
        variables = {"SLURM_CONF": str(self.configuration), **variables}
        wanted = {f"{name}={value}".encode() for name, value in variables.items()}
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if wanted <= set((folder / "environ").read_bytes().split(b"\0")):
                    found.append(int(folder.name))
            except OSError:
                continue  # it has ended, or is another user's
        return sorted(found)


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def end_with_parent() -> None:
    """A daemon gets TERM when the tests end, even if they were killed."""
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)
