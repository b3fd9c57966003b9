"""The HTTP interface of a reward model: routes, bearer token, body limit, and a message for everything wrong."""

import asyncio
import hmac
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeGuard

from starling_train import __version__
from starling_train.config.fields import UserError, named_in_errors
from starling_train.data import conversations, rendered_text
from starling_train.rewards.server_queue import RewardQueue

if TYPE_CHECKING:
    from fastapi import FastAPI, Request


DISCARDED = 64_000_000
Read = Callable[[Any], list[list[dict]]]
Send = Callable[[list[float]], list[Any]]


class Refusal(Exception):
    """A request that is answered with an HTTP status and a message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def build(scores: RewardQueue, *, token: str | None, max_body_bytes: int, about: dict[str, Any]) -> "FastAPI":
    """Build the application.

    POST /score {"conversations": [[{role, content}, ...], ...]} -> {"scores": [...], "truncated": 0, ...}
    POST /get_reward, OpenRLHF's {"query": [...], "prompts": [...], "labels": [...]} -> {"rewards": [...], ...};
    `data.rendered_text` says how text becomes a conversation. truncated: answers that lost their beginning; shortened:
    conversations that did.

    token: required as `Authorization: Bearer`, except on /health. about: what else /health reports.
    """
    from fastapi import FastAPI, Request
    from fastapi.responses import JSONResponse
    from starlette.requests import ClientDisconnect

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)  # they would load scripts from elsewhere

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "version": __version__, **about}

    async def answer(request: Request, read: Read, key: str, sent: Send) -> JSONResponse:
        check_token(request.headers.get("authorization"), token)
        check_content(request.headers.get("content-type"), request.headers.get("content-encoding"))
        requested = read(conversations.parse(await body(request, max_body_bytes)))
        scored = await asyncio.wrap_future(scores.submit(requested))
        return JSONResponse({key: sent(scored.scores), "truncated": scored.truncated, "shortened": scored.shortened})

    async def score(request: Request) -> JSONResponse:
        return await answer(request, of_score_request, "scores", or_null)

    async def get_reward(request: Request) -> JSONResponse:
        return await answer(request, of_openrlhf_request, "rewards", checked)

    # plain routes: the bodies are read and checked above, FastAPI's own reading would only cost time
    app.add_route("/score", score, methods=["POST"])
    app.add_route("/get_reward", get_reward, methods=["POST"])

    def refuse(status: int, message: str) -> JSONResponse:
        # the connection is closed where part of a body may still be on its way
        close = {"Connection": "close"}
        headers = {401: {"WWW-Authenticate": "Bearer", **close}, 413: close, 415: close}
        return JSONResponse({"error": message}, status, headers=headers.get(status))

    routes = "POST /score, POST /get_reward, GET /health"
    for kind, say in (
        (Refusal, lambda error: (error.status, str(error))),
        (UserError, lambda error: (400, str(error))),
        (ClientDisconnect, lambda error: (400, "the connection ended before the body")),  # nobody is left to read it
        (404, lambda error: (404, f"no such route; use {routes}")),
        (405, lambda error: (405, f"wrong method; use {routes}")),
        (Exception, lambda error: (500, f"the server failed: {type(error).__name__}")),
    ):

        async def handle(request: Request, error: Exception, say: Callable = say) -> JSONResponse:
            return refuse(*say(error))

        app.add_exception_handler(kind, handle)
    return app


def check_token(header: str | None, token: str | None) -> None:
    """Raise Refusal (401) unless the header carries the token; compared in constant time."""
    if token is None:
        return
    scheme, _, given = (header or "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), token.encode()):
        raise Refusal(401, "no token, or a wrong one; send Authorization: Bearer TOKEN")


def check_content(kind: str | None, encoding: str | None) -> None:
    """Raise Refusal (415) for a body that says it is something else than JSON.

    A page in a browser can send forms and plain text anywhere without permission, but not JSON: so those are refused.
    """
    media = (kind or "application/json").partition(";")[0].strip().lower()
    if media != "application/json" and not media.endswith("+json"):
        raise Refusal(415, f"the body is declared as {media[:80]}; send JSON with Content-Type: application/json")
    if encoding and encoding.strip().lower() != "identity":
        raise Refusal(415, f"the body is encoded ({encoding[:80]}); send it unencoded")


async def body(request: "Request", limit: int) -> bytes:
    """Read the body. Raises Refusal (413) if it is larger than the limit.

    The excess is read and thrown away, up to DISCARDED bytes: a client that is still writing when its connection closes
    sees an error instead of the answer.
    """
    read, size = bytearray(), 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= limit:
            read += chunk
        elif size > limit + DISCARDED:
            break
    if size > limit:
        raise Refusal(413, f"the body is larger than {limit} bytes; send fewer conversations, or raise max_body_mb")
    return bytes(read)


def of_score_request(request: Any) -> list[list[dict]]:
    """Parse POST /score into conversations. An empty answer is scored: a policy can give one. Raises UserError."""
    requested = request.get("conversations") if isinstance(request, dict) else None
    if not isinstance(requested, list):
        raise UserError('no conversations; send {"conversations": [[{"role", "content"}, ...], ...]}')
    return [_at("conversations", index, _scorable, value) for index, value in enumerate(requested)]


def of_openrlhf_request(request: Any) -> list[list[dict]]:
    """Parse OpenRLHF's request into conversations: text, with or without the prompts that the texts begin with."""
    queries = request.get("query") if isinstance(request, dict) else None
    if not _are_texts(queries):
        raise UserError('no query; send {"query": [text, ...], "prompts": [text, ...]}')
    prompts = request.get("prompts") or [None] * len(queries)
    if request.get("prompts") and (not _are_texts(prompts) or len(prompts) != len(queries)):
        raise UserError(f"prompts: give one text for each of the {len(queries)} queries, or none at all")

    def read(pair: tuple[str, str | None]) -> list[dict]:
        return _scorable(rendered_text.to_conversation(*pair))

    return [_at("query", i, read, pair) for i, pair in enumerate(zip(queries, prompts, strict=True))]


def or_null(scores: list[float]) -> list[float | None]:
    """Return the scores, null for what is not finite: the client leaves that answer out, and no other."""
    return [score if math.isfinite(score) else None for score in scores]


def checked(scores: list[float]) -> list[float]:
    """Return the scores. Raises Refusal (500) for those that JSON cannot carry; OpenRLHF knows no null."""
    if not all(map(math.isfinite, scores)):
        raise Refusal(500, "the reward model gave a score that is not finite")
    return scores


def _scorable(row: Any) -> list[dict]:
    return conversations.of_row(row, allow_empty=True)


def _at(name: str, index: int, read: Callable[[Any], list[dict]], value: Any) -> list[dict]:
    with named_in_errors(f"{name}[{index}]"):
        return read(value)


def _are_texts(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)
