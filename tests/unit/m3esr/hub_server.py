"""A hub on loopback that speaks as much of the real one as `m3esr models` asks for, and breaks on command."""

import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".safetensors", ".bin", ".pth", ".ckpt")


def git_sha1(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


class FakeHub:
    """files: repository -> path -> bytes as listed.

    token: what a request must bring, for gated repositories.  breaks: for each path how many bytes the next answers
    give before the connection drops.  sent: paths whose bytes are others than those listed.  busy: answers of 503 left.
    """

    def __init__(self):
        self.files, self.gated, self.token = {}, set(), "hf_right"
        self.breaks, self.sent, self.busy, self.has_ranges = {}, {}, 0, True
        self.requests = []
        self.url = ""


def pull(models, *names):
    """`m3esr models pull`, licences accepted."""
    return models("pull", *names, "--accept-license")


@contextmanager
def running(hub):
    """Serve a FakeHub; sets its url."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        path = self.path.partition("?")[0]
        self.hub.requests.append((path, self.headers.get("Range")))
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/auth-check|/revision/.*)?", path):
            self.tell(found[1], found[2] == "/auth-check")
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.*)", path):
            self.give(found[1], found[3])
        elif path.startswith("/releases/"):
            self.give("releases", path.removeprefix("/releases/"))
        else:
            self.refuse(404)

    def tell(self, repository, is_check):
        if repository not in self.hub.files:
            return self.refuse(401 if not self.is_let_in() else 404, "RepoNotFound")
        if is_check and repository in self.hub.gated and not self.is_let_in():
            return self.refuse(401, "GatedRepo")
        siblings = []
        for path, content in self.hub.files[repository].items():
            entry = {"rfilename": path, "size": len(content), "blobId": git_sha1(content)}
            if path.endswith(LARGE):
                sha256 = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 134}
            siblings.append(entry)
        gated = "manual" if repository in self.hub.gated else False
        body = {"id": repository, "modelId": repository, "sha": COMMIT, "siblings": siblings, "gated": gated}
        self.answer(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def give(self, repository, path):
        hub = self.hub
        if hub.busy:
            hub.busy -= 1
            return self.refuse(503)
        if repository in hub.gated and not self.is_let_in():
            return self.refuse(401, "GatedRepo")
        if path not in hub.files.get(repository, {}):
            return self.refuse(404, "EntryNotFound")
        content = hub.sent.get(path, hub.files[repository][path])
        headers, status = {"ETag": '"x"'}, 200
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if asked and hub.has_ranges:
            start = int(asked[1])
            if start >= len(content):
                return self.refuse(416)
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            content, status = content[start:], 206
        cut = hub.breaks[path].pop(0) if hub.breaks.get(path) else None
        self.answer(status, content, headers, cut)

    def is_let_in(self):
        return self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    def refuse(self, status, code=""):
        self.answer(status, b"no", {"X-Error-Code": code} if code else {})

    def answer(self, status, content, headers, cut=None):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:cut])
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True
