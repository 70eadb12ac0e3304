"""The hub, as far as pushing and fetching a model needs it: a real HTTP server on loopback with its contents in memory.

It speaks what huggingface_hub 2.4 does without Xet: making a repository and a branch, the check of a card's metadata,
preupload, the LFS batch with its uploads, one commit of NDJSON lines, listings, and downloads.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Generator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

KEY = "hf_right"
_LARGE = re.compile(r".*\.safetensors")

Files = dict[str, bytes]


@dataclass
class Repository:
    """One repository: its commits, and where its branches are."""

    name: str
    private: bool
    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    proposed: list[Files] = field(default_factory=list)
    """What pull requests would make of it."""

    def files(self, revision: str = "main") -> Files:
        """What a branch or commit holds."""
        return self.commits[self.branches.get(revision, revision)]

    def commit(self, branch: str, files: Files, message: str) -> str:
        """A new state of a branch."""
        oid = hashlib.sha1(f"{len(self.commits)}{message}".encode()).hexdigest()
        self.commits[oid] = files
        self.branches[branch] = oid
        self.messages.append(message)
        return oid


@dataclass
class Hub:
    """What the test sees and sets."""

    url: str
    repositories: dict[str, Repository] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    """Large files by SHA-256, committed or not."""
    asked: list[str] = field(default_factory=list)
    """Method and path of every request."""
    keys: set[str] = field(default_factory=set)
    """The authorisation that came with them."""
    failing: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Requests to refuse: a pattern of method and path, and the status and message."""
    holding: str = ""
    """Requests that are not answered before the end: a pattern of method and path."""
    released: threading.Event = field(default_factory=threading.Event)
    card_errors: list[str] = field(default_factory=list)
    """What is wrong with any card."""
    ignored: set[str] = field(default_factory=set)
    """Paths that a .gitignore there would leave out."""

    def add(self, name: str, files: Files | None = None) -> Repository:
        """A repository that is there already."""
        made = self.repositories[name] = Repository(name=name, private=False)
        made.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n", **(files or {})}, "initial commit")
        return made


class _RefusedError(Exception):
    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.code = status, code


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_PUT = do_HEAD = do_GET

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b"".join(iter(self._chunk, b""))
        parts = urlsplit(self.path)
        self.hub.asked.append(f"{self.command} {parts.path}")
        if key := self.headers.get("Authorization"):
            self.hub.keys.add(key)
        if self.hub.holding and re.search(self.hub.holding, f"{self.command} {parts.path}"):
            self.hub.released.wait(60)
            self.close_connection = True
            return
        try:
            for pattern, (status, message) in self.hub.failing.items():
                if re.search(pattern, f"{self.command} {parts.path}"):
                    raise _RefusedError(status, message)
            self._route(unquote(parts.path), parse_qs(parts.query), body)
        except _RefusedError as error:
            self._send({"error": str(error)}, error.status, {"X-Error-Code": error.code, "X-Error-Message": str(error)})

    def _chunk(self) -> bytes:
        size = int(self.rfile.readline(), 16)
        data = self.rfile.read(size)
        self.rfile.readline()
        return data

    def _send(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(content)), **(headers or {})}.items():
            if text:
                self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _route(self, path: str, query: dict[str, list[str]], body: bytes) -> None:
        if path.startswith("/lfs/"):
            self.hub.stored[path.removeprefix("/lfs/")] = body
            return self._send({})
        if path == "/api/validate-yaml":
            errors = [{"message": message} for message in self.hub.card_errors]
            return self._send({"errors": errors, "warnings": []}, 400 if errors else 200)
        self._authorised(path)
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        for pattern, method in (
            (r"/api/models/([^/]+/[^/]+)", self._info),
            (r"/api/models/([^/]+/[^/]+)/revision/(.+)", self._info),
            (r"/api/models/([^/]+/[^/]+)/tree/([^/]+)/?", self._tree),
            (r"/api/models/([^/]+/[^/]+)/branch/(.+)", self._branch),
            (r"/api/models/([^/]+/[^/]+)/preupload/(.+)", self._preupload),
            (r"/api/models/([^/]+/[^/]+)/commit/(.+)", self._commit),
            (r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", self._batch),
            (r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self._resolve),
        ):
            if match := re.fullmatch(pattern, path):
                name, *rest = match.groups()
                repository = self.hub.repositories.get(name)
                if repository is None:
                    raise _RefusedError(404, "Repository not found", "RepoNotFound")
                return method(repository, *rest, query=query, body=body)
        raise _RefusedError(404, f"no {path} here")

    def _authorised(self, path: str) -> None:
        reading = self.command in ("GET", "HEAD")
        if not reading and self.headers.get("Authorization") != f"Bearer {KEY}":
            raise _RefusedError(401, "Invalid credentials in Authorization header")
        del path

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.hub.repositories:
            raise _RefusedError(409, "You already created this model repo")
        self.hub.add(name).private = asked.get("visibility") == "private"
        self._send({"url": f"{self.hub.url}/{name}"})

    def _info(self, repository: Repository, revision: str = "main", **_: Any) -> None:
        files = self._files(repository, revision)
        sha = repository.branches.get(revision, revision)
        self._send({"id": repository.name, "sha": sha, "siblings": [{"rfilename": name} for name in files]})

    def _files(self, repository: Repository, revision: str) -> Files:
        try:
            return repository.files(revision)
        except KeyError:
            raise _RefusedError(404, f"no revision {revision}", "RevisionNotFound") from None

    def _tree(self, repository: Repository, revision: str, **_: Any) -> None:
        files = self._files(repository, revision)
        listed = [{"type": "file", "path": n, "size": len(d), "oid": _git_oid(d)} for n, d in files.items()]
        self._send(listed)

    def _branch(self, repository: Repository, branch: str, **_: Any) -> None:
        if branch in repository.branches:
            raise _RefusedError(409, f"Reference already exists: {branch}")
        repository.branches[branch] = repository.branches["main"]
        self._send({})

    def _preupload(self, repository: Repository, revision: str, *, body: bytes, **_: Any) -> None:
        there = self._files(repository, revision)
        found = []
        for one in json.loads(body)["files"]:
            name = one["path"]
            large = _LARGE.fullmatch(name) is not None
            oid = None
            if name in there:
                oid = hashlib.sha256(there[name]).hexdigest() if large else _git_oid(there[name])
            mode = "lfs" if large else "regular"
            ignored = name in self.hub.ignored
            found.append({"path": name, "uploadMode": mode, "shouldIgnore": ignored, "oid": oid})
        self._send({"files": found})

    def _batch(self, repository: Repository, *, body: bytes, **_: Any) -> None:
        objects = []
        for one in json.loads(body)["objects"]:
            held = one["oid"] in self.hub.stored
            actions = {} if held else {"actions": {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}"}}}
            objects.append({"oid": one["oid"], "size": one["size"], **actions})
        self._send({"transfer": "basic", "objects": objects})

    def _commit(
        self, repository: Repository, revision: str, *, body: bytes, query: dict[str, list[str]], **_: Any
    ) -> None:
        files, message = dict(self._files(repository, revision)), ""
        for line in body.decode().splitlines():
            item = json.loads(line)
            key, value = item["key"], item["value"]
            if key == "header":
                message = value["summary"]
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                if value["oid"] not in self.hub.stored:
                    raise _RefusedError(400, f"{value['path']} was not uploaded")
                files[value["path"]] = self.hub.stored[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
            else:
                raise _RefusedError(400, f"unknown {key}")
        if query.get("create_pr"):
            repository.proposed.append(files)
            repository.branches[f"refs/pr/{len(repository.proposed)}"] = oid = hashlib.sha1(body).hexdigest()
            repository.commits[oid] = files
            proposal = f"{self.hub.url}/{repository.name}/discussions/{len(repository.proposed)}"
            return self._send(
                {
                    "commitUrl": f"{self.hub.url}/{repository.name}/commit/{oid}",
                    "commitOid": oid,
                    "pullRequestUrl": proposal,
                }
            )
        oid = repository.commit(revision, files, message)
        return self._send(
            {"commitUrl": f"{self.hub.url}/{repository.name}/commit/{oid}", "commitOid": oid, "pullRequestUrl": None}
        )

    def _resolve(self, repository: Repository, revision: str, name: str, **_: Any) -> None:
        files = self._files(repository, revision)
        if name not in files:
            raise _RefusedError(404, f"no {name}", "EntryNotFound")
        sha = repository.branches.get(revision, revision)
        self._send(files[name], headers={"X-Repo-Commit": sha, "ETag": f'"{_git_oid(files[name])}"'})


def _git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\x00" % len(data) + data).hexdigest()


@contextlib.contextmanager
def hub_stand_in() -> Generator[Hub]:
    """A hub on a free port of loopback, empty."""

    class Handler(_Handler):
        pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listener.daemon_threads = True
    hub = Handler.hub = Hub(url=f"http://127.0.0.1:{listener.server_address[1]}")
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.released.set()
        listener.shutdown()
        listener.server_close()
        thread.join()
