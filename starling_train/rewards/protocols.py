"""The protocols that reward servers speak: addresses, requests, and what their answers mean.

| protocol | asked | one item is |
|---|---|---|
| starling | `POST /score` of serve_reward | the messages |
| openrlhf | the whole address, OpenRLHF's remote reward model | the text of a conversation, and of its prompt |
| vllm | `POST /classify` (or `/pooling`, if the address ends so) | token ids |
| sglang | `POST /classify` | token ids |
| tei | `POST /predict` of text-embeddings-inference | a text, or two for an encoder of pairs |

The last three are asked for raw scores, without the sigmoid or softmax that they put on a classifier by default, so
that scores are those of the same classifier in this process (`reward=sequence_classification`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from starling_train.config.fields import UserError
from starling_train.models.patient_http import address, message_of

SHAPE = (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError)


@dataclass(frozen=True)
class Protocol:
    """How one kind of server is asked.

    route: behind the base address; empty: the address is whole.
    endings: what else a user's address may end with, behind the base.
    body: (items, name of the model or None) -> the JSON of a request.
    values: JSON of an answer -> a number, or a list of one, for each item.
    about: GET routes that say what is served, and the names of what is worth keeping.
    is_classifier: whether it is another's server of classifiers: tried before a run, a refused item is left out alone.
    """

    route: str
    body: Callable[[Sequence[Any], str | None], dict[str, Any]]
    values: Callable[[Any], Sequence[Any]]
    about: dict[str, tuple[str, ...]]
    endings: tuple[str, ...] = ()
    is_classifier: bool = False

    def base(self, url: str) -> str:
        """Return the address without a route. Raises UserError for what is no address."""
        whole = address(url, "reward.url")
        if not self.route:
            return whole
        base = whole.rstrip("/")
        for ending in (self.route, *self.endings):
            base = base.removesuffix(ending).rstrip("/")
        return base

    def endpoint(self, url: str) -> str:
        """Return where scores are asked for."""
        base = self.base(url)
        if not self.route:
            return base
        is_pooled = "/pooling" in self.endings and url.rstrip("/").endswith("/pooling")
        return base + ("/pooling" if is_pooled else self.route)

    def scores(self, answer: Any, count: int, url: str) -> list[float]:
        """Check and return the scores of an answer: another program may listen at that address.

        nan for null and for what is not finite: one odd answer is left out, as one of a model in this process is.
        """
        try:
            values = [_alone(value) for value in self.values(answer)]
        except SHAPE as error:
            said = f" ({' '.join(message.split())[:200]})" if (message := message_of(answer)) else ""
            raise UserError(
                f"reward.url: {url} gave no scores{said}; is it a reward server? See reward.protocol"
            ) from error
        scores = [value for value in values if not isinstance(value, list)]
        if wide := next((len(value) for value in values if isinstance(value, list)), 0):
            raise UserError(
                f"reward.url: {url} gave {wide} numbers for one conversation; serve a classifier with one label"
            )
        if len(scores) != count:
            raise UserError(
                f"reward.url: {url} gave {len(scores)} scores for {count} conversations; check reward.protocol"
            )
        return [math.nan if score is None or not math.isfinite(score) else score for score in scores]


def _alone(value: Any) -> float | list[Any] | None:
    """Return the number that stands for one item; a list of several as it is. Raises one of SHAPE."""
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    if value is None or (isinstance(value, list) and value):
        return value
    if isinstance(value, bool):
        raise TypeError("not a number")
    return float(value)


def _in_order(rows: Any, key: str) -> list[Any]:
    """Return a value of each row, by the rows' own index where they have one."""
    if all(isinstance(row.get("index"), int) for row in rows):
        rows = sorted(rows, key=lambda row: row["index"])
        if [row["index"] for row in rows] != list(range(len(rows))):
            raise ValueError("indices that are not those of the items")
    return [row[key] for row in rows]


def _listed(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError("not a list")
    return value


def _named(body: dict[str, Any], model: str | None) -> dict[str, Any]:
    return body | ({"model": model} if model else {})


def _openrlhf(items: Sequence[tuple[str, str]], model: str | None) -> dict[str, Any]:
    return {
        "query": [whole for whole, _ in items],
        "prompts": [prompt for _, prompt in items],
        "labels": [""] * len(items),
    }


def _vllm(items: Sequence[list[int]], model: str | None) -> dict[str, Any]:
    return _named({"input": list(items), "use_activation": False}, model)


def _vllm_values(answer: Any) -> list[Any]:
    rows = _listed(answer["data"])
    return _in_order(rows, "probs" if all("probs" in row for row in rows) else "data")


def _sglang_values(answer: Any) -> list[Any]:
    rows = answer if isinstance(answer, list) else [answer]
    return [row["embedding"] for row in rows]


def _tei(items: Sequence[list[str]], model: str | None) -> dict[str, Any]:
    return {"inputs": list(items), "raw_scores": True, "truncate": False}


def _tei_values(answer: Any) -> list[Any]:
    rows = [row if isinstance(row, list) else [row] for row in _listed(answer)]
    return [[prediction["score"] for prediction in row] for row in rows]


PROTOCOLS: dict[str, Protocol] = {
    "starling": Protocol(
        "/score",
        body=lambda items, model: {"conversations": list(items)},
        values=lambda answer: _listed(answer["scores"]),
        about={"/health": ("version", "kind", "model", "weights", "template", "position", "max_length", "dtype")},
    ),
    "openrlhf": Protocol("", _openrlhf, values=lambda answer: _listed(answer["rewards"]), about={}),
    "vllm": Protocol(
        "/classify",
        _vllm,
        _vllm_values,
        about={"/version": ("version",), "/v1/models": ("id", "root", "max_model_len")},
        endings=("/pooling", "/v1"),
        is_classifier=True,
    ),
    "sglang": Protocol(
        "/classify",
        lambda items, model: _named({"input_ids": list(items)}, model),
        _sglang_values,
        about={
            "/get_model_info": ("model_path", "tokenizer_path", "is_generation", "weight_version"),
            "/get_server_info": ("version", "served_model_name", "context_length", "dtype"),
        },
        endings=("/v1",),
        is_classifier=True,
    ),
    "tei": Protocol(
        "/predict",
        _tei,
        _tei_values,
        about={"/info": ("version", "model_id", "model_sha", "model_dtype", "model_type", "max_input_length")},
        endings=("/rerank",),
        is_classifier=True,
    ),
}
