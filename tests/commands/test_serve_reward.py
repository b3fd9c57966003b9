"""`serve_reward` over real HTTP on loopback: scores, batching, everything that is refused, and its end."""

import json
import random
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection

import pytest
import torch
from chat_tokenizers import FAMILIES
from reward_checkpoints import MAX_LENGTH, SIZE, conversations, load, small_tokenizer
from reward_server import Served, ask, ask_all
from transformers import LlamaConfig

from starling_train import serve_reward
from starling_train.models.reward import RewardNet, write_starling_7b
from starling_train.rewards.items import OpenRlhfText

TOKEN = "correct-horse"
HELLO = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Eight thin layers: starting a forward pass costs more than its tokens, as it does on a GPU."""
    path = tmp_path_factory.mktemp("reward")
    torch.manual_seed(0)
    net = RewardNet.from_config(LlamaConfig(**SIZE | {"num_hidden_layers": 8}))
    torch.nn.init.normal_(net.v_head.weight)
    write_starling_7b(net, path, small_tokenizer())
    return path


@pytest.fixture(scope="module")
def model(directory):
    return load("starling_7b", directory)


@pytest.fixture(scope="module")
def arguments(directory):
    return [f"reward.path={directory}", "reward.dtype=float32", f"reward.max_length={MAX_LENGTH}"]


@pytest.fixture(scope="module")
def server(arguments):
    with Served(*arguments, "max_body_mb=0.1") as served:
        assert served.url
        yield served


@pytest.fixture
def connection(server):
    connection = HTTPConnection("127.0.0.1", server.port, timeout=30)
    yield connection
    connection.close()


def short_conversations(count):
    draw = random.Random(5)

    def text(longest):
        return " ".join(draw.choices(["the", "model", "answers", "a", "question"], k=draw.randint(1, longest)))

    return [[{"role": "user", "content": text(3)}, {"role": "assistant", "content": text(6)}] for _ in range(count)]


def test_a_thousand_requests_from_32_connections(server, model):
    """No error, every score the in-process one's. How much faster that is than one at a time: benchmarks/score.py."""
    asked = short_conversations(1000)
    expected = model.score(asked)
    for connections in (32, 1):
        scores, _ = ask_all(server.port, asked[: 1000 if connections > 1 else 100], connections)
        assert scores == pytest.approx(expected[: len(scores)], abs=1e-5)


def test_health_says_what_is_served(connection):
    connection.request("GET", "/health")
    response = connection.getresponse()
    assert response.status == 200
    told = json.loads(response.read())
    assert told.items() >= {"status": "ok", "kind": "starling_7b", "max_length": MAX_LENGTH, "dtype": "float32"}.items()
    assert told["model"].startswith("reward") and len(told["weights"]) == len(told["template"]) == 16


def test_many_conversations_in_one_request_keep_their_order(connection, model):
    asked = [*conversations(40), [*HELLO[:1], {"role": "assistant", "content": ""}]]  # a policy can say nothing
    status, answer = ask(connection, json.dumps({"conversations": asked}))
    assert status == 200
    assert answer["scores"] == pytest.approx(model.score(asked), abs=1e-5)
    assert ask(connection, '{"conversations": []}') == (200, {"scores": [], "truncated": 0, "shortened": 0})


def test_answers_that_lose_their_beginning_are_told(connection):
    long = [HELLO[0], {"role": "assistant", "content": "a" * (MAX_LENGTH + 1)}]
    status, answer = ask(connection, json.dumps({"conversations": [HELLO, long, long]}))
    assert (status, answer["truncated"]) == (200, 2)
    status, answer = ask(connection, json.dumps({"conversations": [HELLO]}))
    assert (status, answer["truncated"]) == (200, 0)


def test_openrlhf_s_request_is_answered(connection, model):
    prompt = "GPT4 Correct User: hi<|end_of_turn|>GPT4 Correct Assistant:"
    request = {"query": [f"<s>{prompt} hello<|end_of_turn|>"], "prompts": [prompt], "labels": [""]}
    status, answer = ask(connection, json.dumps(request), "/get_reward")
    assert (status, list(answer)) == (200, ["rewards", "truncated", "shortened"])
    assert answer["rewards"] == pytest.approx(model.score([HELLO]), abs=1e-5)
    del request["prompts"], request["labels"]
    assert ask(connection, json.dumps(request), "/get_reward") == (status, answer)


@pytest.mark.parametrize("family", FAMILIES)
def test_openrlhf_s_text_is_scored_as_the_conversation(connection, family):
    """What our own client sends is what OpenRLHF sends: the ids of the policy's template, decoded."""
    kind = FAMILIES[family]
    writer = OpenRlhfText(kind.tokenizer())
    talks = [HELLO, [*HELLO, *HELLO[:1], {"role": "assistant", "content": "What is it?\n\nhello world"}]]
    talks += [[{"role": "system", "content": "Be brief."}, *HELLO]] if kind.takes_system else []
    sent = [writer.item(talk) for talk in talks]
    request = {
        "query": [query for query, _ in sent],
        "prompts": [prompt for _, prompt in sent],
        "labels": [""] * len(sent),
    }
    status, answer = ask(connection, json.dumps(request), "/get_reward")
    assert (status, answer["rewards"]) == (200, ask(connection, json.dumps({"conversations": talks}))[1]["scores"])


@pytest.mark.parametrize(
    "path,body,says",
    [
        ("/score", b"{", "not JSON"),
        ("/score", b"", "not JSON"),
        ("/score", b"\xff\xfe", "not UTF-8"),
        ("/score", b"[" * 90_000, "not JSON"),
        ("/score", b"1" * 9000, "not JSON"),
        ("/score", b"[]", "no conversations"),
        ("/score", b'{"conversations": "hi"}', "no conversations"),
        ("/score", b'{"conversations": [[]]}', "conversations[0]: conversation: the roles are none"),
        ("/score", json.dumps({"conversations": [HELLO, HELLO[:1]]}).encode(), "[1]: the conversation ends"),
        ("/score", b'{"conversations": [["hi"]]}', "conversations[0]: `messages` must be a list of objects"),
        ("/score", b'{"conversations": [[{"role": "user", "content": 1}]]}', "must be text"),
        ("/score", b'{"conversations": [[{"role": "user", "content": "\\ud800"}]]}', "surrogate"),
        ("/get_reward", b'{"query": "hi"}', "no query"),
        ("/get_reward", b'{"query": ["hi"]}', "query[0]: a query in no known template"),
        ("/get_reward", b'{"query": ["hi"], "prompts": ["a", "b"]}', "prompts"),
        ("/get_reward", b'{"query": ["hi"], "prompts": ["hello"]}', "does not begin with its prompt"),
    ],
)  # fmt: skip
def test_malformed_requests_get_400_and_a_message(connection, path, body, says):
    status, answer = ask(connection, body, path)
    assert status == 400 and says in answer["error"]
    assert ask(connection, json.dumps({"conversations": [HELLO]}))[0] == 200  # and the server goes on


@pytest.mark.parametrize(
    "text",
    [
        b"no HTTP at all\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n",  # a TLS hello
        b"POST /score HTTP/9.9\r\nHost: x\r\n\r\n",
        b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n{}",
        b"POST /score HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    ],
)
def test_what_is_no_http_gets_400_and_a_message(server, text):
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as raw:
        raw.sendall(text)
        answer = raw.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 400 ") and b"Invalid HTTP request" in answer


def test_wrong_route_and_method(connection):
    assert ask(connection, b"{}", "/docs")[0] == 404
    connection.request("GET", "/score")
    response = connection.getresponse()
    assert response.status == 405 and "POST /score" in response.read().decode()


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit_gets_413(server, chunked):
    body = json.dumps({"conversations": [[HELLO[0], {"role": "assistant", "content": "a" * 150_000}]]}).encode()
    connection = HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("POST", "/score", iter([body]) if chunked else body, encode_chunked=chunked, headers=(
        {"Transfer-Encoding": "chunked"} if chunked else {}
    ))  # fmt: skip
    response = connection.getresponse()
    assert response.status == 413 and "max_body_mb" in response.read().decode()


def test_a_token_is_asked_for_and_sigterm_lets_requests_under_way_end(arguments, model):
    asked = conversations(300, seed=9)
    with Served(*arguments, STARLING_REWARD_TOKEN=TOKEN) as served, ThreadPoolExecutor(1) as pool:
        connection = HTTPConnection("127.0.0.1", served.port, timeout=60)
        body = json.dumps({"conversations": [HELLO]})
        for given in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
            for path in ("/score", "/get_reward"):
                status, answer = ask(connection, body, path, **given)
                assert status == 401 and "token" in answer["error"] and TOKEN not in json.dumps(answer)
        assert ask(connection, body, Authorization=f"Bearer {TOKEN}")[0] == 200
        connection.request("GET", "/health")
        response = connection.getresponse()
        assert response.read() and response.status == 200

        with socket.create_connection(("127.0.0.1", served.port)) as gone:  # a client that dies within its request
            head = f"POST /score HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 9\r\n\r\n"
            gone.sendall(head.encode() + b"{")

        body = json.dumps({"conversations": asked})
        answer = pool.submit(ask, connection, body, Authorization=f"Bearer {TOKEN}")
        time.sleep(0.15)
        served.process.send(signal.SIGTERM)
        status, said = answer.result()
        code, out, error = served.process.wait(30), served.process.out(), served.process.error()
    assert status == 200 and said["scores"] == pytest.approx(model.score(asked), abs=1e-5)
    assert (code, error) == (143, "")  # nothing on stderr, so no token either
    assert TOKEN not in out and "stopped by a signal" in out


def test_dry_run_says_what_would_be_served(arguments, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["serve_reward", *arguments, "dry_run=true"])
    serve_reward.main()
    out = capsys.readouterr().out
    assert "would serve" in out and "127.0.0.1:8000" in out
