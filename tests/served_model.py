"""A model behind `transformers serve`, in a process of its own on loopback."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path


class ServedModel:
    """`transformers serve` with one model; a context that ends with the process."""

    def __init__(self, model: Path, log: Path, *more: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url, self._log = f"http://127.0.0.1:{port}/v1", log
        options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", *more]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "transformers.cli.transformers", "serve", str(model), *options],
            stdout=log.open("wb"), stderr=subprocess.STDOUT, env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )  # fmt: skip

    def requests(self) -> int:
        return self._log.read_text().count('"POST /v1/chat/completions')

    def __enter__(self) -> "ServedModel":
        while "Uvicorn running" not in self._log.read_text():
            assert self.process.poll() is None, self._log.read_text()
            time.sleep(0.1)
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()
