"""A model hub on loopback: the requests of the hub's protocol that downloads consist of.

GET /api/models/REPO/revision/REV and .../tree/REV (the files), HEAD and GET /REPO/resolve/REV/FILE.
"""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

COMMIT = "c0ffee" + "0" * 34


def _entry(name: str, size: int) -> dict[str, object]:
    return {"type": "file", "path": name, "size": size, "oid": "0" * 40}


class Hub:
    """Serves folders as repositories and remembers which files were sent."""

    def __init__(self, repositories: dict[str, Path]) -> None:
        self.sent: list[str] = []
        self._repositories = repositories
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.answer(body=False)

            def do_GET(self) -> None:
                self.answer(body=True)

            def answer(self, *, body: bool) -> None:
                path = self.path.split("?")[0]
                content = hub.find(path)
                if content is None:
                    self.send_response(404)
                    self.send_header("X-Error-Code", "EntryNotFound")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                if body and "/resolve/" in path:
                    hub.sent.append(path)
                self.send(content, body=body)

            def send(self, data: bytes, *, body: bool) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
                self.end_headers()
                if body:
                    self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def find(self, path: str) -> bytes | None:
        """What lies under a path: a repository's list of files, or one of them."""
        for repo, folder in self._repositories.items():
            if path.startswith(f"/api/models/{repo}/"):
                files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
                names = [str(p.relative_to(folder)) for p in files]
                if "/tree/" in path:
                    sizes = zip(names, (p.stat().st_size for p in files), strict=True)
                    return json.dumps([_entry(name, size) for name, size in sizes]).encode()
                listing = {"sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
                return json.dumps({"id": repo, **listing}).encode()
            if path.startswith(f"/{repo}/resolve/"):
                file = folder / path.removeprefix(f"/{repo}/resolve/").split("/", 1)[1]
                return file.read_bytes() if file.is_file() else None
        return None

    @property
    def url(self) -> str:
        """What HF_ENDPOINT is set to."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
