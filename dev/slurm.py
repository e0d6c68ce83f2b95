"""A real Slurm on this machine: one node, with a configuration and an authentication of its own.

It needs Debian's packages ``slurmctld``, ``slurmd``, ``slurm-client`` and ``munge``, and root: Slurm starts a
job as the user who has submitted it. ``python -m dev.slurm`` says what is missing.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from dev.jobmon_sandbox import wait_until
from dev.launcher import Child, free_ports

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")

_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin"

_CONFIGURATION = """\
ClusterName=sandbox
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=1
ReturnToService=2
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
KillWait=10
MinJobAge=300
SlurmctldTimeout=300
NodeName=node NodeHostname={host} NodeAddr=127.0.0.1 Port={node_port} CPUs={cpus} RealMemory={memory}
PartitionName=long Nodes=node Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:64
"""


def absent_programs() -> list[str]:
    """Return which of Slurm's programs are not installed."""
    programs = ("munged", "slurmctld", "slurmd", "sbatch", "squeue")
    return [name for name in programs if shutil.which(name, path=_PATH) is None]


def missing() -> str:
    """Return what keeps a Slurm from being started here, in one line; empty: nothing."""
    if absent := absent_programs():
        return (
            f"no {', '.join(absent)} (Debian: apt-get install --no-install-recommends {' '.join(PACKAGES)})"
        )
    return "" if os.geteuid() == 0 else "only root can start jobs as their users"


class Slurm:
    """A cluster of this machine alone; a context manager.

    :ivar environment: what a process needs to use it: ``SLURM_CONF``, and a PATH that has Slurm's commands.
    """

    def __init__(self) -> None:
        self.environment: dict[str, str] = {}
        self._folder = Path()
        self._children = contextlib.ExitStack()
        self._controller: Child | None = None

    def __enter__(self) -> Slurm:
        self._folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._children.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def run(self, *command: str) -> str:
        """Run one of Slurm's commands, such as ``squeue``, and return what it writes."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60, check=False
        )
        if done.returncode != 0:
            raise OSError(f"{command[0]}: {done.stderr.strip()}")
        return done.stdout

    def kill_controller(self) -> None:
        """Kill slurmctld, as a crash would, once it has saved its jobs: what it has not, it forgets."""
        assert self._controller is not None
        self._save_jobs()
        self._controller.kill(signal.SIGKILL)

    def _save_jobs(self) -> None:
        """Wait until it has saved its jobs, as it does within seconds of a change."""
        began = time.time()
        jobs = self.run("squeue", "--noheader", "--format=%A").split()
        for number in jobs:
            self.run("scontrol", "update", f"JobId={number}", "Comment=saved")
        saved = self._folder / "state" / "job_state"
        if jobs:
            wait_until(lambda: saved.exists() and saved.stat().st_mtime > began, 60, "jobs to be saved")

    def start_controller(self) -> None:
        """Start slurmctld, with the state that was saved, and wait until it answers."""
        self._controller = self._child("slurmctld", "-D")
        wait_until(self._answers, 20, "slurmctld to answer")

    def _start(self) -> None:
        self._folder.chmod(0o755)  # any user's job and commands read the configuration
        controller_port, node_port = free_ports(2)
        for name in ("munge", "state", "spool"):
            (self._folder / name).mkdir(mode=0o755)
        key = self._folder / "munge" / "key"
        key.touch(mode=0o400)
        key.write_bytes(secrets.token_bytes(1024))
        configuration = self._folder / "slurm.conf"
        configuration.write_text(
            _CONFIGURATION.format(
                host=socket.gethostname(),
                folder=self._folder,
                controller_port=controller_port,
                node_port=node_port,
                cpus=os.cpu_count(),
                memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20,
            )
        )
        self.environment = {"PATH": _PATH, "SLURM_CONF": str(configuration)}
        munge = self._folder / "munge"
        options = {
            "key-file": key,
            "socket": munge / "socket",
            "pid-file": munge / "pid",
            "seed-file": munge / "seed",
        }
        words = [f"--{name}={value}" for name, value in options.items()]
        self._child("munged", "--foreground", "--force", *words, f"--log-file={munge / 'log'}")
        wait_until((munge / "socket").exists, 20, "munged")
        self.start_controller()
        self._child("slurmd", "-D", "-N", "node")
        wait_until(lambda: "idle" in self.run("sinfo", "-h", "-o", "%T"), 30, "a node that is idle")

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            return "UP" in self.run("scontrol", "ping")
        return False

    def _child(self, *command: str) -> Child:
        program = shutil.which(command[0], path=_PATH) or command[0]
        environment: Mapping[str, str] = {**os.environ, **self.environment}
        log = self._folder / f"{command[0]}.out"
        child = Child([program, *command[1:]], env=environment, cwd=self._folder, log=log)
        self._children.callback(child.stop)
        return child


if __name__ == "__main__":
    sys.exit(missing() or 0)
