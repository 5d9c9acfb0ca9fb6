"""A stand-in for the Hugging Face hub on loopback, so that hub names are tested with the real client libraries.

    with serve(root) as url: ...     # root/models/ORG/NAME/*, root/datasets/ORG/NAME/*

The client is a process of its own, as HF_ENDPOINT and HF_HOME are read when its libraries are imported:
`subprocess.run([...], env=client_environment(url, home))`. A repository with a file `.gated` answers 403, gated.
Every repository has the one revision "main". Who brings a token may make repositories and commit to them, but for
the token READER.
"""

import base64
import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "c" * 40
READER = "hf_reader"
API = re.compile(
    r"/api/(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)(/(?P<verb>revision|tree|paths-info)/(?P<revision>[^/]+))?/?(?P<path>.*)"
)
WRITING = re.compile(r"/api/(repos/create|validate-yaml|models/(?P<name>[^/]+/[^/]+)/(?P<verb>preupload|commit)/main)")
FILE = re.compile(r"/(?P<kind>datasets/)?(?P<name>[^/]+/[^/]+)/resolve/[^/]+/(?P<path>.+)")


@contextmanager
def serve(root: Path) -> Iterator[str]:
    """The address of a hub that serves `root` until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"root": Path(root).resolve()}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def client_environment(url: str, home: Path) -> dict[str, str]:
    """Environment of a client process: this hub, a cache of its own, nothing of the user's hub settings or proxies."""
    inherited = {
        key: value for key, value in os.environ.items() if not key.startswith("HF_") and "proxy" not in key.lower()
    }
    return inherited | {
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }


class _Handler(BaseHTTPRequestHandler):
    root: Path
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        if WRITING.fullmatch(path):
            self._write(path, body)
        elif match := API.fullmatch(path):
            if match["revision"] not in (None, "main", COMMIT):
                self._refuse(404, "RevisionNotFound")
            elif repository := self._repository(match["kind"], match["name"]):
                self._api(repository, match, body, parse_qs(url.query))
        elif match := FILE.fullmatch(path):
            if repository := self._repository("datasets" if match["kind"] else "models", match["name"]):
                self._file(repository, match["path"])
        else:
            self._refuse(404, "EntryNotFound")

    do_HEAD = do_POST = do_GET

    def _write(self, path: str, body: str) -> None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if path.endswith("validate-yaml"):
            return self._json({"errors": [], "warnings": []})
        if not token or token == READER:
            return self._refuse(403 if token else 401, "")
        if path.endswith("create"):
            asked = json.loads(body)
            folder = self.root / "models" / asked["organization"] / asked["name"]
            address = {"url": f"http://{self.headers['Host']}/{asked['organization']}/{asked['name']}"}
            if folder.is_dir():
                return self._json(address, 409)
            folder.mkdir(parents=True)
            (folder / ".asked").write_text(body)
            return self._json(address)
        match = WRITING.fullmatch(path)
        assert match
        if match["verb"] == "preupload":
            files = json.loads(body)["files"]
            return self._json(
                {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
            )
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                file = self.root / "models" / match["name"] / line["value"]["path"]
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(base64.b64decode(line["value"]["content"]))
        address = f"http://{self.headers['Host']}/{match['name']}/commit/{COMMIT}"
        self._json({"commitUrl": address, "commitOid": COMMIT, "success": True})

    def _repository(self, kind: str, name: str) -> Path | None:
        """The repository's folder; None after an answer that says why there is none for this client."""
        folder = (self.root / kind / name).resolve()
        if not folder.is_relative_to(self.root) or not folder.is_dir():
            return self._refuse(404, "RepoNotFound")
        return self._refuse(403, "GatedRepo") if (folder / ".gated").exists() else folder

    def _api(self, repository: Path, match: re.Match, body: str, query: dict[str, list[str]]) -> None:
        if match["verb"] == "paths-info":
            wanted = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body).get("paths", [])
            return self._json(
                [_entry(repository, repository / path) for path in wanted if (repository / path).exists()]
            )
        if match["verb"] == "tree":
            folder = repository / match["path"]
            if not folder.is_dir():
                return self._refuse(404, "EntryNotFound")
            recursive = query.get("recursive", [""])[0].lower() in ("true", "1")
            return self._json(
                [_entry(repository, path) for path in sorted(folder.rglob("*") if recursive else folder.iterdir())]
            )
        files = sorted(path.relative_to(repository).as_posix() for path in repository.rglob("*") if path.is_file())
        name = repository.relative_to(repository.parents[1]).as_posix()
        siblings = [{"rfilename": file} for file in files]
        self._json({"id": name, "sha": COMMIT, "private": False, "gated": False, "tags": [], "siblings": siblings})

    def _file(self, repository: Path, path: str) -> None:
        file = (repository / path).resolve()
        if not file.is_relative_to(repository) or not file.is_file():
            return self._refuse(404, "EntryNotFound")
        data = file.read_bytes()
        headers = {"ETag": f'"{_hash(file)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if part := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            start, end = int(part[1]), int(part[2] or len(data) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
            return self._send(206, data[start : end + 1], headers)
        self._send(200, data, headers)

    def _json(self, value, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"{}", {"X-Error-Code": code, "X-Repo-Commit": COMMIT})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format, *args) -> None:
        pass


def _entry(repository: Path, path: Path) -> dict:
    relative = path.relative_to(repository).as_posix()
    if path.is_dir():
        return {"type": "directory", "path": relative, "oid": COMMIT}
    return {"type": "file", "path": relative, "size": path.stat().st_size, "oid": _hash(path)}


def _hash(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()
