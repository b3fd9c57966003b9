"""A hub on loopback that models are uploaded to: of its API what `huggingface_hub` asks for that, with git and LFS."""

import base64
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

TOKEN, READ_ONLY = "hf_mayWrite00", "hf_mayRead000"
LARGE = (".safetensors", ".bin", ".model")


@dataclass
class UploadHub:
    """Repositories by OWNER/NAME: files, and whether private. Its user is `me`; `others/*` is not theirs.

    stored: large files by SHA-256. said: method and path of every request. refuse: (method, part of a path) -> status.
    """

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)
    stored: dict[str, bytes] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    refuse: dict[tuple[str, str], int] = field(default_factory=dict)

    def __enter__(self) -> "UploadHub":
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


class _Handler(BaseHTTPRequestHandler):
    hub: UploadHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0].strip("/")
        self.hub.said.append(f"{self.command} {path}")
        for (method, part), status in self.hub.refuse.items():
            if method == self.command and part in path:
                return self._send(status, {"error": f"no {part} today"})
        if path.startswith("stored/"):  # a signed address: no token
            oid = path.removeprefix("stored/")
            assert hashlib.sha256(body).hexdigest() == oid
            self.hub.stored[oid] = body
            return self._send(200, {})
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if path == "api/validate-yaml":
            return self._validate(json.loads(body))
        if token not in (TOKEN, READ_ONLY):
            return self._send(401, {"error": "Invalid credentials in Authorization header"})
        if path == "api/repos/create":
            return self._create(json.loads(body), token)
        parts = path.removeprefix("api/models/").removesuffix(".git/info/lfs/objects/batch").split("/")
        name, rest = "/".join(parts[:2]), parts[2:]
        if name not in self.hub.repositories:
            return self._send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        if self.command == "GET":
            return self._send(200, {"id": name, "sha": "0" * 40, "siblings": [], "private": True, "tags": []})
        if token == READ_ONLY:
            return self._send(403, {"error": "You need write rights"})
        if path.endswith("objects/batch"):
            return self._batch(json.loads(body))
        {"preupload": self._preupload, "commit": self._commit}[rest[0]](name, body)

    def _validate(self, asked: dict[str, Any]) -> None:
        """The metadata has to be YAML, a name of a base model a name, every result whole."""
        data = yaml.safe_load(asked["content"].split("---\n")[1])
        wrong = [key for key in ("license", "library_name") if not isinstance(data.get(key, ""), str)]
        for index in data.get("model-index", []):
            for result in index["results"]:
                whole = result["task"]["type"] and result["dataset"]["type"] and result["dataset"]["name"]
                wrong += (
                    [] if whole and all("type" in m and "value" in m for m in result["metrics"]) else ["model-index"]
                )
        errors = [{"message": f'"{key}" is wrong'} for key in wrong]
        self._send(400 if wrong else 200, {"errors": errors, "warnings": []})

    def _create(self, asked: dict[str, Any], token: str) -> None:
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if name in self.hub.repositories:
            return self._send(409, {"error": "exists already", "url": f"{self.hub.url}/{name}"})
        if token == READ_ONLY or name.startswith("others/"):
            return self._send(403, {"error": "You don't have the rights to create a model under this namespace"})
        self.hub.repositories[name] = {}
        self.hub.private[name] = asked.get("visibility") == "private"
        self._send(200, {"url": f"{self.hub.url}/{name}", "name": name})

    def _preupload(self, name: str, body: bytes) -> None:
        held = self.hub.repositories[name]
        files = []
        for file in json.loads(body)["files"]:
            path = file["path"]
            mode, oid = ("lfs" if path.endswith(LARGE) else "regular"), None
            if path in held and mode == "regular":
                oid = hashlib.sha1(b"blob %d\0" % len(held[path]) + held[path]).hexdigest()
            elif path in held:
                oid = hashlib.sha256(held[path]).hexdigest()
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._send(200, {"files": files})

    def _batch(self, asked: dict[str, Any]) -> None:
        objects = []
        for one in asked["objects"]:
            upload = {"upload": {"href": f"{self.hub.url}/stored/{one['oid']}"}}
            objects.append(one | ({} if one["oid"] in self.hub.stored else {"actions": upload}))
        self._send(200, {"transfer": "basic", "objects": objects})

    def _commit(self, name: str, body: bytes) -> None:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.hub.commits.append(value["summary"])
            elif line["key"] == "file":
                self.hub.repositories[name][value["path"]] = base64.b64decode(value["content"])
            else:
                assert line["key"] == "lfsFile" and value["algo"] == "sha256"
                self.hub.repositories[name][value["path"]] = self.hub.stored[value["oid"]]
        oid = hashlib.sha1(body).hexdigest()
        self._send(200, {"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{name}/commit/{oid}"})

    def _send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        written = json.dumps(content).encode()
        self.send_response(status)
        for header, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(header, value)
        self.send_header("Content-Length", str(len(written)))
        self.end_headers()
        self.wfile.write(written)
