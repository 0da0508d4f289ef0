"""A stand-in for the Hugging Face Hub: the part of its HTTP API that uploads and downloads of models and datasets use, held in memory."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import yaml

TOKEN = "hf_that_may_write"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
LFS_SUFFIXES = (".safetensors", ".bin")  # of the files that go the way of large files


class Hub(ThreadingHTTPServer):
    """Repositories as dictionaries from path to bytes, and what was asked for, in order."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.settings: dict[str, dict] = {}
        self.large_files: dict[str, bytes] = {}
        self.log: list[str] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


def metadata_errors(card: str) -> list[str]:
    """Find what the Hub refuses in a card: no metadata, and folders in place of names."""
    if not card.startswith("---\n"):
        return ["no metadata"]
    metadata = yaml.safe_load(card.split("---\n")[1])
    named = {key: metadata.get(key) or [] for key in ("base_model", "datasets")}
    names = [(key, name) for key, value in named.items() for name in ([value] if isinstance(value, str) else value)]
    return [f'"{key}" with value "{name}" is not valid.' for key, name in names if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name)]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        self.route(
            {
                r"/api/models/([^/]+/[^/]+)/auth-check/write": self.check_token,
                r"/api/(?:models|datasets)/([^/]+/[^/]+)(?:/revision/[^/]+)?": self.describe,
                r"/api/(?:models|datasets)/([^/]+/[^/]+)/tree/[^/]+/?": self.list_files,
                r"(?:/datasets)?/([^/]+/[^/]+)/resolve/[^/]+/(.+)": self.send_file,
            }
        )

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        content = self.body()
        self.server.large_files[hashlib.sha256(content).hexdigest()] = content
        self.send(200, {})

    def do_POST(self) -> None:
        if not self.may_write():
            self.body()
            return self.send(401, {"error": "Invalid username or password."})
        self.route(
            {
                r"/api/repos/create": self.create,
                r"/api/validate-yaml": self.validate,
                r"/api/(?:models|datasets)/([^/]+/[^/]+)/preupload/main": self.choose_ways,
                r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch": self.offer_places,
                r"/api/(?:models|datasets)/([^/]+/[^/]+)/commit/main": self.commit,
            }
        )

    def route(self, handlers: dict) -> None:
        path = self.path.partition("?")[0]
        self.server.log.append(f"{self.command} {path}")
        for pattern, handler in handlers.items():
            match = re.fullmatch(pattern, path)
            if match:
                return handler(*match.groups())
        self.send(404, {"error": "Not Found"})

    def may_write(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def check_token(self, repo: str) -> None:
        self.send(*((200, {}) if self.may_write() else (401, {"error": "Invalid username or password."})))

    def create(self) -> None:
        request = json.loads(self.body())
        name = "/".join(filter(None, (request.get("organization"), request["name"])))
        self.server.repositories.setdefault(name, {})
        self.server.settings[name] = request
        self.send(200, {"url": f"{self.server.endpoint}/{name}", "name": name, "id": COMMIT})

    def validate(self) -> None:
        content = json.loads(self.body())["content"]
        errors = metadata_errors(content)
        self.send(400 if errors else 200, {"errors": [{"message": error} for error in errors], "warnings": []})

    def choose_ways(self, repo: str) -> None:
        paths = [file["path"] for file in json.loads(self.body())["files"]]
        ways = {path: "lfs" if path.endswith(LFS_SUFFIXES) else "regular" for path in paths}
        self.send(200, {"files": [{"path": path, "uploadMode": way, "shouldIgnore": False} for path, way in ways.items()]})

    def offer_places(self, repo: str) -> None:
        objects = json.loads(self.body())["objects"]
        places = {entry["oid"]: {"upload": {"href": f"{self.server.endpoint}/lfs/{entry['oid']}"}} for entry in objects}
        self.send(200, {"transfer": "basic", "objects": [entry | {"actions": places[entry["oid"]]} for entry in objects]})

    def commit(self, repo: str) -> None:
        files = self.server.repositories[repo]
        for operation in map(json.loads, self.body().splitlines()):
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.server.large_files[value["oid"]]
        url = f"{self.server.endpoint}/{repo}/commit/{COMMIT}"
        self.send(200, {"success": True, "commitOid": COMMIT, "commitUrl": url, "hookOutput": ""})

    def describe(self, repo: str) -> None:
        if repo not in self.server.repositories:
            return self.send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        siblings = [{"rfilename": path} for path in self.server.repositories[repo]]
        self.send(200, {"id": repo, "sha": COMMIT, "siblings": siblings, "private": False, "tags": [], "downloads": 0, "likes": 0})

    def list_files(self, repo: str) -> None:
        files = self.server.repositories.get(repo, {})
        self.send(200, [{"type": "file", "path": path, "size": len(content), "oid": COMMIT} for path, content in files.items()])

    def send_file(self, repo: str, path: str) -> None:
        content = self.server.repositories.get(repo, {}).get(path)
        if content is None:
            code = "EntryNotFound" if repo in self.server.repositories else "RepoNotFound"
            return self.send(404, {"error": code}, {"X-Error-Code": code, "X-Repo-Commit": COMMIT})
        self.send(200, content, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT})

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def send(self, status: int, content: object, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
