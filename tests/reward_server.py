"""Reward servers for tests, on free ports of loopback: the real command in a process of its own, and a scripted one."""

import asyncio
import contextlib
import json
import re
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from fault_process import Started


class Served:
    """`serve_reward` with these arguments, a forked process; the context ends it. url is known once it listens."""

    def __init__(self, *arguments: str, port: int = 0, **environment: str) -> None:
        self._folder = tempfile.TemporaryDirectory()
        given = [f"port={port}", "cluster.device=cpu", *arguments]
        self.process = Started("serve_reward", given, Path(self._folder.name), environment=environment)
        self._url = ""

    @property
    def url(self) -> str:
        if not self._url:
            self.process.wait_until(lambda: "\n" in self.process.out(), pause=0.01)
            line = self.process.out().partition("\n")[0]
            assert line.startswith("serving on http://"), line + self.process.error()
            self._url = line.split()[-1]
        return self._url

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def __enter__(self) -> "Served":
        return self

    def __exit__(self, *error) -> None:
        self.process.send(signal.SIGKILL)
        self.process.wait()
        self._folder.cleanup()


def ask(connection: HTTPConnection, body: bytes | str, path: str = "/score", **headers: str) -> tuple[int, dict]:
    """Status and JSON of a POST."""
    connection.request("POST", path, body, headers)
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def ask_all(port: int, conversations: list[list[dict]], connections: int) -> tuple[list[float], float]:
    """(the scores of one request a conversation from so many connections, seconds). Anything but 200 raises."""
    bodies = [json.dumps({"conversations": [messages]}).encode() for messages in conversations]
    requests = [b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(b), b) for b in bodies]
    scores = [0.0] * len(requests)

    async def one_connection(first: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for index in range(first, len(requests), connections):
            writer.write(requests[index])
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(re.search(rb"content-length: (\d+)", head)[1])
            answer = await reader.readexactly(length)
            assert head.startswith(b"HTTP/1.1 200"), answer
            scores[index] = json.loads(answer)["scores"][0]
        writer.close()

    async def all_connections() -> None:
        await asyncio.gather(*map(one_connection, range(connections)))

    began = time.perf_counter()
    asyncio.run(all_connections())
    return scores, time.perf_counter() - began


def honest(request: dict) -> tuple[int, object]:
    return 200, {"scores": [len(messages[-1]["content"]) for messages in request["conversations"]]}


class Scripted(ThreadingHTTPServer):
    """Answers with `honest`, but for the first requests with what `script` says: (status, JSON), None hangs up."""

    daemon_threads = True

    def __init__(self, *script, port: int = 0, delay_s: float = 0.0, answer: Callable = honest):
        super().__init__(("127.0.0.1", port), Handler)
        self.script, self.delay_s, self.answer, self.lock = list(script), delay_s, answer, threading.Lock()
        self.told: dict[str, object] = {}  # what GET of a route gives
        self.requests: list[tuple[str, dict, dict]] = []
        self.running, self.most = 0, 0
        self.connections: list[socket.socket] = []
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def __exit__(self, *error):
        self.shutdown()
        super().__exit__(*error)
        for connection in self.connections:  # as when the process ends
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self):
        super().setup()
        self.server.connections.append(self.connection)

    def do_GET(self):
        told = self.server.told.get(self.path)
        self._send(404 if told is None else 200, told)

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append((self.path, dict(self.headers), request))
            answer = self.server.script.pop(0) if self.server.script else self.server.answer(request)
            self.server.running += 1
            self.server.most = max(self.server.most, self.server.running)
        time.sleep(self.server.delay_s)
        with self.server.lock:
            self.server.running -= 1
        if answer is None:
            self.close_connection = True
            return
        self._send(*answer)

    def _send(self, status, content):
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *ignored):
        pass
