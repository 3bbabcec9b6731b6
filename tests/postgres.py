"""A PostgreSQL server for tests, on loopback."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest


class Server:
    """A server with a fresh folder of its own; Debian's programs, which refuse to run as root."""

    def __init__(self):
        self.bin = _programs()
        self.folder = Path(tempfile.mkdtemp(prefix="noisin-postgres-"))
        self._as = {"user": "postgres"} if os.getuid() == 0 else {}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        if self._as:
            shutil.chown(self.folder, "postgres")
        self._do("initdb", "-D", "data", "-A", "trust", "-U", "noisin", "--no-sync")

    @property
    def url(self):
        return f"postgresql://noisin@127.0.0.1:{self.port}/postgres"

    def _do(self, program, *words):
        subprocess.run(
            [self.bin / program, *words],
            cwd=self.folder,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **self._as,
        )

    def start(self):
        options = f"-h 127.0.0.1 -p {self.port} -k {self.folder} -F"
        self._do("pg_ctl", "-D", "data", "-w", "-l", "log", "-o", options, "start")

    def stop(self, how="fast"):
        self._do("pg_ctl", "-D", "data", "-w", "-m", how, "stop")

    def remove(self):
        """Stop it and take its files away."""
        self.stop("immediate")
        shutil.rmtree(self.folder)

    def restart(self, pause=1.0):
        """Stop without waiting for anybody, and come back a moment later."""
        self.stop("immediate")
        time.sleep(pause)
        self.start()


def _programs():
    """Return the folder of the server's programs, or skip."""
    found = shutil.which("pg_ctl")
    places = [Path(found).resolve().parent] if found else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    usable = [place for place in places if (place / "initdb").exists()]
    if not usable:
        pytest.skip("there is no PostgreSQL server")
    if os.getuid() == 0 and "postgres" not in [entry.pw_name for entry in pwd.getpwall()]:
        pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
    return usable[-1]
