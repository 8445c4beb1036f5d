"""nginx in front of some replicas, as an Ingress controller sets it up. Knows no service."""

import os
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest

from service.cli import processes
from tests.running import until

CONFIG = """
{user}
worker_processes 2;
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 512; }}
http {{
  access_log off;
  # A reload closes idle connections of clients, also as their next request arrives (nginx ticket
  # 1022; `keepalive_min_timeout` mends it from 1.27.4 on). The replicas are tested, not nginx.
  keepalive_timeout 0;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  upstream api {{
{servers}
  }}
  server {{
    listen 127.0.0.1:{port};
    client_max_body_size 101m;
    location / {{
      proxy_pass http://api;
      proxy_set_header Host $http_host;
      proxy_set_header X-Forwarded-For $remote_addr;
      proxy_set_header X-Forwarded-Proto $scheme;
      proxy_request_buffering off;
      proxy_buffering off;
      proxy_read_timeout 120s;
    }}
  }}
}}
"""


class Balancer:
    """One nginx, whose replicas can be changed while it serves."""

    def __init__(self, folder: Path) -> None:
        program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        if program is None:
            pytest.skip("nginx is not installed; the Debian package `nginx-light` has it")
        folder.mkdir()
        self._command = [program, "-p", str(folder), "-c", str(folder / "nginx.conf")]
        self._folder = folder
        self._port = processes.free_port()
        self.url = f"http://127.0.0.1:{self._port}"

    def start(self, *replicas: str) -> None:
        """Serve, sending requests to these URLs in turn."""
        self._write(replicas)
        self._process = processes.spawn(self._command, log=self._folder / "nginx.log")

        def answers() -> bool:
            assert self._process.poll() is None, (self._folder / "nginx.log").read_text()
            try:
                return httpx.get(f"{self.url}/healthz/live").is_success
            except httpx.HTTPError:
                return False

        until(answers, what="an answer through nginx")

    def send_to(self, *replicas: str) -> None:
        """Send new requests to these URLs; those in flight stay where they are."""
        self._write(replicas)
        before = self._workers()
        subprocess.run([*self._command, "-s", "reload"], check=True, capture_output=True)
        until(lambda: self._workers() - before, what="nginx with its new configuration")

    def stop(self) -> None:
        """End nginx."""
        processes.end(self._process, grace_seconds=10)

    def _write(self, replicas: tuple[str, ...]) -> None:
        servers = "\n".join(f"    server {r.removeprefix('http://')};" for r in replicas)
        user = "user root;" if os.geteuid() == 0 else ""
        text = CONFIG.format(user=user, folder=self._folder, port=self._port, servers=servers)
        (self._folder / "nginx.conf").write_text(text)

    def _workers(self) -> set[str]:
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        return set(children.read_text().split())
