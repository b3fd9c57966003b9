"""A server on loopback that answers as vLLM's does, as far as a run asks it, with a model in this process.

It loads what it is sent, forgets it when it is started again, and can be told to fail.
"""

import copy
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file


class Quiet(ThreadingHTTPServer):
    """Says nothing of clients that have gone."""

    def handle_error(self, *of: Any) -> None:
        pass


class ImitatedVllm:
    """url: its address.

    sent: names of the tensors of each load. keys: what requests carried. failing: route -> statuses to answer with, one
    after the other. before: called before each completion, with its number.
    """

    def __init__(self, model: Any, key: str | None = None, most: int = 10_000):
        self._first, self._key, self._most = copy.deepcopy(model), key, most
        self.sent: list[set[str]] = []
        self.failing: dict[str, list[int]] = {}
        self.before = lambda number: None
        self.broken_off = 0
        self._lock, self._count = threading.Lock(), 0
        self._started = 1000.0
        self.restart()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *arguments: Any) -> None:
                pass

            def do_GET(self) -> None:
                outer.get(self)

            def do_POST(self) -> None:
                outer.post(self)

        self._http = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def restart(self) -> None:
        """Have the first weights again, as a process that was started anew."""
        self._started += 1
        self.model = copy.deepcopy(self._first).eval()

    def get(self, handler: Any) -> None:
        if handler.path == "/metrics":
            text = f"# HELP x\nprocess_start_time_seconds {self._started}\nother 1\n".encode()
            handler.send_response(200)
            handler.end_headers()
            handler.wfile.write(text)
        else:
            answer(handler, 200, {"data": [{"id": "m", "max_model_len": self._most}]})

    def post(self, handler: Any) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        if self._key and handler.headers.get("Authorization") != f"Bearer {self._key}":
            return answer(handler, 401, {"error": "Unauthorized"})
        if statuses := self.failing.get(handler.path):
            return answer(handler, statuses.pop(0), {"error": {"message": "told to fail"}})
        if handler.path == "/collective_rpc":
            self._load(Path(body["kwargs"]["weights_path"]))
            return answer(handler, 200, {"results": [None]})
        if handler.path == "/reset_prefix_cache":
            return answer(handler, 200, {"success": True})
        self._count += 1
        self.before(self._count)
        if self.broken_off:
            self.broken_off -= 1
            return answer(handler, 200, {"choices": [{"token_ids": [], "finish_reason": "abort"}]})
        with self._lock:
            return answer(handler, 200, {"choices": [self._complete(body)]})

    def _load(self, path: Path) -> None:
        tensors = {name: tensor for file in path.glob("*.safetensors") for name, tensor in load_file(file).items()}
        self.sent.append(set(tensors))
        with self._lock:
            self.model.load_state_dict(tensors, strict=False)

    @torch.no_grad()
    def _complete(self, body: dict[str, Any]) -> dict[str, Any]:
        ids, drawn, logprobs = list(body["prompt"]), [], []
        first = self.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        probed = [None, *({str(token): {"logprob": float(first[at, token])}} for at, token in enumerate(ids[1:]))]
        while len(drawn) < body["max_tokens"]:
            scores = self.model(input_ids=torch.tensor([ids + drawn])).logits[0, -1].log_softmax(-1)
            drawn.append(int(scores.argmax()))
            logprobs.append(float(scores[drawn[-1]]))
            if drawn[-1] in body.get("stop_token_ids", ()):
                break
        ended = "stop" if drawn[-1] in body.get("stop_token_ids", ()) else "length"
        found = {"token_ids": drawn, "finish_reason": ended, "logprobs": {"token_logprobs": logprobs}}
        return found | ({"prompt_logprobs": probed} if "prompt_logprobs" in body else {})

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


def answer(handler: Any, status: int, content: dict[str, Any]) -> None:
    text = json.dumps(content).encode()
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(text)))
    handler.end_headers()
    handler.wfile.write(text)
