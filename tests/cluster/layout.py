"""What a test cluster is made of: its settings and where its files lie."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

DEFAULT_ROOT = Path('/var/lib/slurm_futures-cluster')
DEFAULT_PORT = 17000
DEFAULT_USER = 'sfuser'

# Marks the daemons of a cluster, and what they start in turn.
ROOT_VARIABLE = 'SLURM_FUTURES_CLUSTER_ROOT'

# Daemons and commands run with these only: what the caller's shell holds must not reach jobs.
BASE_ENV = {
    'PATH': '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
    'LANG': 'C.UTF-8',
}


class ClusterError(Exception):
    """The cluster cannot do what was asked; the message says why and what to do."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What may differ from one test cluster to the next.

    Attributes:
        user: the ordinary user that runs jobs and may play faults.
        port: first of 100 TCP ports that belong to this cluster.
        nodes: number of compute nodes, named n1, n2, ...
        cpus: CPUs that each node claims to have.
        memory: memory that each node claims to have, in MiB.
        accounting: whether slurmdbd (with its own MariaDB) keeps job records for sacct.
        options: slurm.conf parameters that replace or join the default ones.
    """

    user: str = DEFAULT_USER
    port: int = DEFAULT_PORT
    nodes: int = 4
    cpus: int = 4
    memory: int = 4000
    accounting: bool = False
    options: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def node_names(self) -> list[str]:
        """Names of the compute nodes, in order."""
        return [f'n{number}' for number in range(1, self.nodes + 1)]

    def node_port(self, node: str) -> int:
        """TCP port of the slurmd of a node."""
        return self.port + 10 + int(node[1:])

    @property
    def dbd_port(self) -> int:
        """TCP port of slurmdbd."""
        return self.port + 1


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where one cluster keeps its files, all below one root folder."""

    root: Path

    @property
    def slurm_conf(self) -> Path:
        """What SLURM_CONF must point to; the other Slurm files lie beside it."""
        return self.root / 'slurm.conf'

    @property
    def dbd_conf(self) -> Path:
        """Configuration of slurmdbd."""
        return self.root / 'slurmdbd.conf'

    @property
    def settings_file(self) -> Path:
        """The settings, for commands that come after `up`."""
        return self.root / 'cluster.json'

    @property
    def control_socket(self) -> Path:
        """Where the control server listens."""
        return self.root / 'control.sock'

    @property
    def munge(self) -> Path:
        """Folder of munged: its key, seed and socket."""
        return self.root / 'munge'

    @property
    def munge_socket(self) -> Path:
        """Where this cluster's munged listens; each cluster has its own."""
        return self.munge / 'munge.socket'

    @property
    def mysql(self) -> Path:
        """Folder of MariaDB: data, pid and socket."""
        return self.root / 'mysql'

    @property
    def mysql_socket(self) -> Path:
        """Where MariaDB listens; it has no TCP port."""
        return self.mysql / 'mysql.sock'

    @property
    def state(self) -> Path:
        """slurmctld's StateSaveLocation."""
        return self.root / 'state'

    @property
    def spool(self) -> Path:
        """Parent of each slurmd's spool folder."""
        return self.root / 'spool'

    @property
    def gpus(self) -> Path:
        """Folder of the files that stand for GPUs."""
        return self.root / 'gpus'

    @property
    def logs(self) -> Path:
        """Folder of the daemons' logs."""
        return self.root / 'log'

    @property
    def pids(self) -> Path:
        """Folder of the pid files."""
        return self.root / 'pids'

    def environment(self) -> dict[str, str]:
        """Environment of daemons and of commands that talk to them."""
        return BASE_ENV | {
            'SLURM_CONF': str(self.slurm_conf),
            'MYSQL_UNIX_PORT': str(self.mysql_socket),
            ROOT_VARIABLE: str(self.root),
        }

    def load(self) -> Settings:
        """Read the settings that `up` saved.

        Raises:
            ClusterError: there is no cluster in this folder.
        """
        try:
            return Settings(**json.loads(self.settings_file.read_text()))
        except FileNotFoundError:
            raise ClusterError(f'no cluster in {self.root}: bring one up first') from None

    def save(self, settings: Settings) -> None:
        """Write the settings so that a reader sees all or nothing."""
        scratch = self.settings_file.with_suffix('.tmp')
        scratch.write_text(json.dumps(dataclasses.asdict(settings), indent=2) + '\n')
        scratch.replace(self.settings_file)
