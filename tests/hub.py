"""A stand-in for the Hugging Face Hub on this machine: repositories of models, made, committed to and downloaded."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]


class Repositories:
    """By name: commits, each with all its files, and what branches point at."""

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, Files]] = {}
        self.branches: dict[str, dict[str, str]] = {}

    def make(self, name: str) -> None:
        if name not in self.commits:
            self.commits[name], self.branches[name] = {}, {}
            self.commit(name, "main", {".gitattributes": b""})

    def commit(self, name: str, branch: str, files: Files) -> str:
        """Adds files; returns the commit's id."""
        before = self.files(name, branch) or {}
        commit = hashlib.sha1(f"{name} {branch} {len(self.commits[name])}".encode()).hexdigest()
        self.commits[name][commit] = {**before, **files}
        self.branches[name][branch] = commit
        return commit

    def resolve(self, name: str, revision: str) -> str | None:
        commit = self.branches.get(name, {}).get(revision, revision)
        return commit if commit in self.commits.get(name, {}) else None

    def files(self, name: str, revision: str) -> Files | None:
        commit = self.resolve(name, revision)
        return None if commit is None else self.commits[name][commit]


class _Handler(BaseHTTPRequestHandler):
    repositories: Repositories

    def log_message(self, *args: Any) -> None:
        """Says nothing."""

    def _answer(self, body: Any, status: int = 200, **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        path = unquote(urlsplit(self.path).path)
        if path == "/api/repos/create":
            asked = json.loads(content)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            self.repositories.make(name)
            return self._answer({"url": f"/{name}", "name": name, "id": name})
        if path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        asked_for = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit|branch)/(.+)", path)
        assert asked_for, path
        name, action, revision = asked_for.groups()
        if action == "branch":
            if self.repositories.resolve(name, revision) is None:
                self.repositories.commit(name, revision, self.repositories.files(name, "main") or {})
            return self._answer({})
        if action == "preupload":
            asked = json.loads(content)["files"]
            modes = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in asked]
            return self._answer({"files": modes})
        lines = [json.loads(line) for line in content.splitlines() if line.strip()]
        added = [line["value"] for line in lines if line["key"] == "file"]
        files = {file["path"]: base64.b64decode(file["content"]) for file in added}
        commit = self.repositories.commit(name, revision, files)
        url = f"http://{self.headers['Host']}/{name}/commit/{commit}"
        return self._answer({"success": True, "commitOid": commit, "commitUrl": url})

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        about = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+)(?:/(.+))?)?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        name, revision = (about[1], about[3] or "main") if about else (file[1], file[2]) if file else ("", "")
        commit, files = self.repositories.resolve(name, revision), self.repositories.files(name, revision)
        if commit is None or files is None:
            missing = "RevisionNotFound" if name in self.repositories.commits else "RepoNotFound"
            return self._answer({"error": missing}, 404, X_Error_Code=missing)
        if about and about[2] == "tree":
            inside = {p: c for p, c in files.items() if about[4] is None or p.startswith(f"{about[4]}/")}
            if not inside:
                return self._answer({"error": "Entry"}, 404, X_Error_Code="EntryNotFound")
            return self._answer([{"type": "file", "path": p, "size": len(c), "oid": "0"} for p, c in inside.items()])
        if about:
            siblings = [{"rfilename": path} for path in files]
            return self._answer({"id": name, "sha": commit, "private": False, "tags": [], "siblings": siblings})
        content = files.get(file[3])
        if content is None:
            return self._answer({"error": "Entry"}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        digest = hashlib.sha256(content).hexdigest()
        return self._answer(content, ETag=f'"{digest}"', X_Repo_Commit=commit)

    do_HEAD = do_GET


@contextmanager
def serving() -> Iterator[tuple[str, Repositories]]:
    """The address of a hub, for `HF_ENDPOINT`, and what is in it."""
    repositories = Repositories()
    handler = type("Handler", (_Handler,), {"repositories": repositories})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", repositories
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
