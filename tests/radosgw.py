"""A real Ceph object store for a test: radosgw over one monitor and one OSD that keeps its objects in memory.

Unlike moto's server it checks signatures and keeps quotas; unlike S3 it commits an upload in parts over whatever is there
(16.2). Debian's programs run in the foreground on loopback, with keys and a folder of their own, without root and without
systemd; the kernel ends them with the process that started them, also when that one is killed.
"""

import os
import secrets
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from buckets import BUCKET, Bucket, made_bucket, moto_bucket, set_in_environment
from prunella.node_processes import free_port, kill_groups, start_on_node
from prunella.records import NodeRef
from waiting import wait_until

Server = subprocess.Popen[bytes]
PROGRAMS = ("ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "ceph", "monmaptool", "ceph-authtool")
PATIENCE_S = 60.0

#: One copy of everything, in memory; answers within milliseconds instead of the seconds that suit a cluster of many
#: monitors; and a disk that others have filled does not stop the monitor.
SETTINGS = """
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{monitor_port}/0]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
keyring = {folder}/keyring
run dir = {folder}
log file = {folder}/$name.log
admin socket =
pid file =
mon data = {folder}/monitor
mon allow pool size one = true
mon data avail warn = 0
mon data avail crit = 0
paxos propose interval = 0.02
paxos min wait = 0.01
osd data = {folder}/osd
osd objectstore = memstore
memstore device bytes = {size_bytes}
osd crush chooseleaf type = 0
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
rgw rados pool pg num min = 1
rgw frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1
rgw gc obj min wait = 1
rgw gc processor period = 1
rgw gc processor max time = 10
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Radosgw:
    """A gateway that answers on loopback."""

    folder: Path
    port: int

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def bucket(self, name: str = BUCKET, *, prefix: str = "team/runs", quota_bytes: int | None = None) -> Bucket:
        """A new, empty bucket of a new user, who may fill it up to a quota."""
        user, key, secret = f"user-{name}", secrets.token_hex(10), secrets.token_urlsafe(30)
        self._admin(
            "user", "create", f"--uid={user}", f"--display-name={user}", f"--access-key={key}", f"--secret-key={secret}"
        )
        if quota_bytes is not None:
            scope = (f"--uid={user}", "--quota-scope=bucket")
            self._admin("quota", "set", *scope, f"--max-size={quota_bytes}")
            self._admin("quota", "enable", *scope)
        return made_bucket(self.endpoint, f"s3://{name}/{prefix}", key=key, secret=secret)

    def _admin(self, *arguments: str) -> None:
        _call(self.folder, "radosgw-admin", *arguments)


@contextmanager
def radosgw_bucket() -> Iterator[Bucket]:
    """An empty bucket behind a gateway of its own. Skips where its programs are not installed."""
    with radosgw_server() as gateway:
        yield gateway.bucket()


@contextmanager
def bucket_by(server: str) -> Iterator[Bucket]:
    """An empty bucket behind a server of its own, `moto` or `radosgw`, where the SDK finds it."""
    with moto_bucket() if server == "moto" else radosgw_bucket() as made, set_in_environment(made.environment):
        yield made


@contextmanager
def radosgw_server(*, size_bytes: int = 2 * 2**30) -> Iterator[Radosgw]:
    """A gateway without users, whose objects may take `size_bytes` of memory. Skips where its programs are not installed."""
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        pytest.skip(f"make system: Ceph's programs are not installed (missing: {', '.join(missing)})")
    servers: list[Server] = []
    # A short name, because a socket's path has 107 characters at most.
    with tempfile.TemporaryDirectory(prefix="prunella-ceph-") as name:
        gateway = Radosgw(folder=Path(name), port=free_port())
        try:
            _start_cluster(gateway, size_bytes, servers)
            servers.append(_start(gateway.folder, "radosgw", "-n", "client.admin"))
            _wait_until_it_answers(gateway, servers[-1])
            yield gateway
        finally:
            kill_groups(servers)  # nothing of it is to be kept


def _start_cluster(gateway: Radosgw, size_bytes: int, servers: list[Server]) -> None:
    folder, monitor_port, fsid, osd = gateway.folder, free_port(), str(uuid.uuid4()), str(uuid.uuid4())
    ports = {"monitor_port": monitor_port, "port": gateway.port}
    (folder / "ceph.conf").write_text(SETTINGS.format(folder=folder, fsid=fsid, size_bytes=size_bytes, **ports))
    for part in ("monitor", "osd"):
        (folder / part).mkdir()
    _make_keys(folder)
    _call(folder, "monmaptool", "--create", "--addv", "a", f"[v2:127.0.0.1:{monitor_port}/0]", "--fsid", fsid, "monmap")
    _call(folder, "ceph-mon", "--mkfs", "-i", "a", "--monmap", "monmap", "--keyring", "keyring")
    servers.append(_start(folder, "ceph-mon", "-i", "a"))
    _call(folder, "ceph", "osd", "new", osd)
    _call(folder, "ceph-osd", "--mkfs", "-i", "0", "--osd-uuid", osd)
    servers.append(_start(folder, "ceph-osd", "-i", "0"))


def _make_keys(folder: Path) -> None:
    """One ring for all: the folder is closed to everybody else."""
    may = ("--cap", "mon", "allow *", "--cap", "osd", "allow *")
    _call(folder, "ceph-authtool", "keyring", "--create-keyring", "--gen-key", "-n", "mon.", *may)
    for name in ("client.admin", "osd.0"):
        _call(folder, "ceph-authtool", "keyring", "--gen-key", "-n", name, *may)


def _call(folder: Path, *command: str) -> None:
    settings = {**os.environ, "CEPH_CONF": str(folder / "ceph.conf")}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=settings, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, f"{' '.join(command[:2])}: {done.stderr}"


def _start(folder: Path, program: str, *arguments: str) -> Server:
    """A server in the foreground."""
    settings = {"CEPH_CONF": str(folder / "ceph.conf")}
    command = [program, "-f", *arguments]
    return start_on_node(NodeRef(name=program), command, log=folder / f"{program}.output", environment=settings)


def _wait_until_it_answers(gateway: Radosgw, server: Server) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def answers() -> bool:
        try:
            opener.open(gateway.endpoint, timeout=5.0).close()
        except urllib.error.URLError:
            return False
        return True

    wait_until(answers, (gateway.folder / "radosgw.output").read_text, timeout_s=PATIENCE_S, command=server)
