"""A hub on loopback, for tests: speaks of its API what `huggingface_hub` and `datasets` ask, from files in memory."""

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Repository:
    """Files by name. gated, hidden: who asks for a file, or for anything, without the token is refused."""

    files: dict[str, bytes]
    gated: bool = False
    hidden: bool = False
    revisions: tuple[str, ...] = ("main",)

    @property
    def commit(self) -> str:
        return hashlib.sha1(repr(sorted(self.files.items())).encode()).hexdigest()


TOKEN = "hf_right"
GATED = (403, "GatedRepo", "Access to this repository is restricted.")
NO_REPOSITORY = (401, "RepoNotFound", "Repository not found")  # so the hub answers to whoever has not logged in


@dataclass
class Hub:
    """Models by id, data sets by `datasets/id`. fetched: names of the files whose content was asked for."""

    repositories: dict[str, Repository]
    fetched: list[str] = field(default_factory=list)
    broken: int = 0  # a status that every request gets

    def __enter__(self) -> "Hub":
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def use(self, monkeypatch: Any, cache: Any) -> None:
        """Let the libraries of this process ask here, with a cache and settings of their own."""
        import datasets.config
        from huggingface_hub import constants

        for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
            monkeypatch.delenv(variable, raising=False)
        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        template = "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", self.url + template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", self.url)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(cache / "datasets"))
        monkeypatch.setattr(datasets.config, "HF_MODULES_CACHE", str(cache / "modules"))


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}"))

    def _answer(self, body: Any = None) -> None:
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if self.hub.broken:
            return self._send(self.hub.broken, b"broken")
        is_api = parts[0] == "api"
        if is_api:
            parts = parts[1:]
        kind = "datasets/" if parts[0] == "datasets" else ""
        if parts[0] in ("datasets", "models"):
            parts = parts[1:]
        name, rest = kind + "/".join(parts[:2]), parts[2:]
        repository = self.hub.repositories.get(name)
        sent = self.headers.get("Authorization")
        if sent not in (None, f"Bearer {TOKEN}"):
            return self._refuse(401, "", "Invalid credentials in Authorization header")
        has_token = sent is not None
        if repository is None or (repository.hidden and not has_token):
            return self._refuse(*NO_REPOSITORY)
        revision = rest[1] if len(rest) > 1 else "main"
        if revision not in (*repository.revisions, repository.commit):
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if is_api:
            return self._describe(name.removeprefix("datasets/"), repository, rest, body)
        if repository.gated and not has_token:
            return self._refuse(*GATED)
        self._file(repository, "/".join(rest[2:]))

    def _describe(self, name: str, repository: Repository, rest: list[str], body: Any) -> None:
        what = rest[0] if rest else "revision"
        if what == "revision":
            siblings = [{"rfilename": file} for file in sorted(repository.files)]
            values: Any = {"id": name, "sha": repository.commit, "siblings": siblings, "private": False, "tags": []}
        elif what == "tree":
            folder = "/".join(rest[2:])
            values = _entries(repository, folder, recursive="recursive=true" in self.path.lower())
            if folder and not values:
                return self._refuse(404, "EntryNotFound", "no such folder")
        elif what == "paths-info":
            named = [entry for entry in _entries(repository, "", recursive=True) if entry["path"] in body["paths"]]
            values = named
        else:
            return self._refuse(404, "EntryNotFound", what)
        self._send(200, json.dumps(values).encode(), {"Content-Type": "application/json"})

    def _file(self, repository: Repository, name: str) -> None:
        content = repository.files.get(name)
        if content is None:
            return self._refuse(404, "EntryNotFound", name)
        if self.command == "GET":
            self.hub.fetched.append(name)
        tag = hashlib.sha1(name.encode() + content).hexdigest()  # a file of the same content is fetched all the same
        self._send(200, content, {"ETag": f'"{tag}"', "X-Repo-Commit": repository.commit})

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._send(status, message.encode(), {"X-Error-Code": code, "X-Error-Message": message})

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _entries(repository: Repository, folder: str, *, recursive: bool) -> list[dict[str, Any]]:
    """What the hub lists of a folder: files, and the folders that they are in."""
    start = f"{folder}/" if folder else ""
    entries: dict[str, dict[str, Any]] = {}
    for name, content in sorted(repository.files.items()):
        if not name.startswith(start):
            continue
        above = name[len(start) :].split("/")[:-1]
        for depth in range(len(above)):
            path = start + "/".join(above[: depth + 1])
            if recursive or depth == 0:
                entries[path] = {"type": "directory", "path": path, "oid": "0" * 40, "size": 0}
        if recursive or not above:
            oid = hashlib.sha1(content).hexdigest()
            entries[name] = {"type": "file", "path": name, "oid": oid, "size": len(content)}
    return list(entries.values())
