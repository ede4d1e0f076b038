"""A throw-away Slurm on this machine: real daemons, nodes that are made up, one folder.

Nodes n1, n2, ... are slurmd processes on ports of the loopback; CPUs and GPUs are only counted.
Partition `urgent` takes nodes from `main` by requeueing what runs there. Whatever belongs to the
cluster carries its SLURM_CONF in the environment, and is killed by that mark.
"""

import os
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun")
SYSTEM = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
NODES, CPUS, GPUS = 5, 64, 4
#: cred_expire: a requeued job waits so long and a second; KillWait: between TERM and KILL;
#: SlurmdTimeout: a node that is silent for so long is down
CONF = """\
ClusterName=throwaway
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={root}/munge.sock,cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/%n.pid
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MailProg=/bin/true
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,bf_interval=1,sched_interval=1,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
KillWait=15
MinJobAge=86400
SlurmctldTimeout=300
SlurmdTimeout=20
GresTypes=gpu
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=30
PartitionName=urgent Nodes=ALL MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
"""


def why_not() -> str | None:
    """Why no Slurm can be started here, or None."""
    missing = [name for name in NEEDED if not shutil.which(name, path=SYSTEM)]
    return f"{', '.join(missing)} missing: apt-get install slurm-wlm munge" if missing else None


def free_port(among: Iterator[int]) -> int:
    """The next port that nobody listens at."""
    for port in among:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no free port")


OVER = threading.Event()  #: whoever waits need not any longer


def until(true: Callable[[], bool], seconds: float, what: str, every: float = 0.05) -> None:
    """Wait until something is so, with a look `every` so many seconds."""
    deadline = time.monotonic() + seconds
    while not true():
        assert not OVER.is_set(), f"stopped before {what}"
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(every)


class Cluster:
    """A running cluster in `root`."""

    def __init__(self, root: Path):
        self.root, self.conf = root, root / "slurm.conf"
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        # Our mark, and no trace of a cluster that the tests themselves may run on.
        outer = {k: v for k, v in os.environ.items() if not re.match("SLURM|SBATCH|SRUN", k)}
        self.env = outer | {"SLURM_CONF": str(self.conf), "PATH": SYSTEM}

    def start(self) -> None:
        """Write the configuration, start all, wait for the nodes."""
        OVER.clear()
        import getpass

        # A cluster beside this one, of a process with the next number, probes at the same moment.
        ports = iter(range(11000 + 16 * os.getpid() % 7900, 19000))
        host = socket.gethostname().split(".")[0]
        text = CONF.format(root=self.root, host=host, port=free_port(ports), user=getpass.getuser())
        for n in range(1, NODES + 1):
            text += f"NodeName=n{n} NodeHostname={host} NodeAddr=127.0.0.1 Port={free_port(ports)} "
            text += f"CPUs={CPUS} RealMemory=1000000 Gres=gpu:{GPUS}\n"
            (self.root / f"n{n}").mkdir()
        self.conf.write_text(text)
        for n in range(GPUS):  # any file may be a GPU that is only counted
            (self.root / f"gpu{n}").touch()
        gpus = f"NodeName=n[1-{NODES}] Name=gpu File={self.root}/gpu[0-{GPUS - 1}]\n"
        (self.root / "gres.conf").write_text("AutoDetect=off\n" + gpus)
        (self.root / "munge.key").touch(0o600)
        (self.root / "munge.key").write_bytes(os.urandom(128))
        (self.root / "state").mkdir()
        munge = [f"--{name}={self.root}/munge.{name.split('-')[0]}" for name in
                 ("key-file", "pid-file", "seed-file", "log-file")]  # fmt: skip
        socket_file = self.root / "munge.sock"
        self.daemon("munged", "--foreground", "--force", f"--socket={socket_file}", *munge)
        until(socket_file.exists, 10, "munged")
        self.daemon("slurmctld", "-D", "-c")
        for n in range(1, NODES + 1):
            self.daemon("slurmd", "-D", "-N", f"n{n}")
        until(lambda: self.node_states() == ["idle"] * NODES, 30, f"idle nodes, see {self.root}")

    def daemon(self, *words: str) -> None:
        """Start one; a slurmd once more, if it was killed."""
        name = "-".join([words[0], *words[3:4]]) if words[0] == "slurmd" else words[0]
        with open(self.root / f"{name}.log", "ab") as log:
            self.daemons[name] = subprocess.Popen(
                words, env=self.env, cwd=self.root, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def stop(self) -> None:
        """Kill all that carries our mark; new ones are looked for until none is left."""
        OVER.set()
        while found := self.processes():
            for process in found:
                with suppress(psutil.Error):
                    process.kill()
            for daemon in self.daemons.values():
                daemon.poll()
            time.sleep(0.05)

    def processes(self, **also: str) -> list[psutil.Process]:
        """What runs with our SLURM_CONF in its environment, and with these values; psutil's own
        reading of it ends where slurmstepd has written its title."""
        wanted = {f"{k}={v}".encode() for k, v in {"SLURM_CONF": self.conf, **also}.items()}
        found = []
        for pid in psutil.pids():
            with suppress(OSError, psutil.Error):
                there = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                if wanted <= set(there) and pid != os.getpid():
                    found.append(psutil.Process(pid))
        return found

    def run(self, *words: str, code: int = 0) -> str:
        """What a command prints; it has to end with `code`."""
        done = subprocess.run(words, env=self.env, capture_output=True, text=True, timeout=60)
        assert done.returncode == code, f"{words}: {done.returncode}: {done.stderr}"
        return done.stdout

    def node_states(self) -> list[str]:
        done = subprocess.run(
            ["sinfo", "-hN", "-p", "main", "-o", "%T"], env=self.env, capture_output=True, text=True
        )
        return done.stdout.split()

    def states(self, job: str) -> dict[str, str]:
        """State by task, as "7_1"; by id, where it is no array."""
        lines = self.run("squeue", "-h", "-r", "-t", "all", "-j", job, "-o", "%i %T").splitlines()
        return dict(line.split() for line in sorted(lines))

    def wait(self, job: str, seconds: float = 120) -> set[str]:
        """The states in which a job ends; one that is requeued has not ended."""
        final = {"CANCELLED", "COMPLETED", "FAILED", "NODE_FAIL", "TIMEOUT", "OUT_OF_MEMORY"}

        def over() -> bool:
            return final >= set(self.states(job).values())

        until(over, seconds, f"job {job}: {self.states(job)}", every=1)  # squeue costs
        return set(self.states(job).values())


@contextmanager
def throwaway() -> Iterator[Cluster]:
    """A cluster for as long as the body takes."""
    root = Path(tempfile.mkdtemp(prefix="slurm"))  # short: a socket's path has 107 characters
    cluster = Cluster(root)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(root, ignore_errors=True)
