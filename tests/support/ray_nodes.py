"""A Ray cluster of several nodes on this machine, bound to 127.0.0.1; every process of a node can be found and killed.

The processes of a node are known by a variable of their environment, which children inherit.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MARK = "DEMBENCH_TEST_NODE"
SETTINGS = {
    "node_ip_address": "127.0.0.1",
    "include_dashboard": False,
    "include_log_monitor": False,
    "no_monitor": True,
    "object_store_memory": 80 * 2**20,
    "num_cpus": 1,
}
HEALTH = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000, "health_check_failure_threshold": 8}


class Nodes:
    """Nodes that are started one by one; the first is the head."""

    def __init__(self) -> None:
        from ray._private import ray_constants
        from ray.cluster_utils import Cluster

        ray_constants.ENABLE_RAY_CLUSTER = False  # read from the environment when Ray was imported, perhaps earlier
        self.cluster = Cluster(shutdown_at_exit=False)
        self.marks: dict[str, str] = {}  # by the node's id

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def add(self, **settings: object) -> str:
        """Starts a node; returns its id."""
        os.environ[MARK] = mark = f"{uuid.uuid4().hex}"
        first = {"_system_config": HEALTH} if self.cluster.head_node is None else {}
        try:
            node = self.cluster.add_node(**{**SETTINGS, **first, **settings})
        finally:
            del os.environ[MARK]
        self.marks[node.node_id] = mark
        return str(node.node_id)

    def processes(self, node: str) -> list[int]:
        """Of a node: its raylet, its workers and whatever else it has started."""
        wanted = f"{MARK}={self.marks[node]}".encode()
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit() and int(folder.name) != os.getpid():
                try:
                    if wanted in (folder / "environ").read_bytes().split(b"\0"):
                        found.append(int(folder.name))
                except OSError:  # gone, or not ours
                    continue
        return found

    def kill(self, node: str) -> int:
        """As when a machine loses its power; returns how many processes that were."""
        killed: set[int] = set()
        while pids := self.processes(node):
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
                killed.add(pid)
            time.sleep(0.05)
            _reap()
        return len(killed)

    def close(self) -> None:
        for node in reversed(self.marks):
            self.kill(node)


def _reap() -> None:
    """Children that ended, so that they do not stay as zombies."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


@contextmanager
def nodes() -> Iterator[Nodes]:
    """An empty cluster; in the end all its processes and files are gone."""
    temporary = tempfile.mkdtemp(prefix="dr-", dir="/tmp")  # paths of sockets must be short
    settings = {
        "RAY_TMPDIR": temporary,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else Ray takes 127.0.0.1 for the machine's address in the network
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    made = None
    try:
        made = Nodes()
        yield made
    finally:
        if made is not None:
            made.close()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        shutil.rmtree(temporary, ignore_errors=True)
