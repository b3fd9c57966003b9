"""The judge's client, against servers on loopback that fail in every way."""

import threading

import pytest
from reward_server import Scripted

from starling_train.config.evaluate import JudgeConfig
from starling_train.config.fields import UserError
from starling_train.evals.mt_bench.judge import Judge, Reply, endpoint, key_of

ASKED = [{"role": "user", "content": "Rate this."}]


def said(text: object, **more: object) -> tuple[int, dict]:
    usage = {"prompt_tokens": 5, "completion_tokens": 3}
    return 200, {
        "choices": [{"message": {"role": "assistant", "content": text}}],
        "usage": usage,
        "model": "m-1",
    } | more


def judge(server: Scripted, **settings) -> Judge:
    url = f"http://127.0.0.1:{server.server_port}/v1"
    settings = {"url": url, "model": "m", "key_env": None, "timeout_s": 5, "patience_s": 5} | settings
    return Judge(JudgeConfig(**settings))


def test_what_is_asked_and_what_is_read(monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret-1")
    with Scripted(answer=lambda request: said("[[7]]")) as server:
        reply = judge(server, key_env="MY_KEY", max_tokens=99).ask(ASKED)
        ((path, headers, body),) = server.requests
    assert reply == Reply("[[7]]", "", 5, 3, "m-1")
    assert (path, headers["Authorization"]) == ("/v1/chat/completions", "Bearer secret-1")
    assert body == {"model": "m", "messages": ASKED, "temperature": 0, "max_tokens": 99}


@pytest.mark.parametrize("failure", [(429, {"error": {"message": "slow down"}}), (500, {}), (503, {}), None])
def test_what_passes_is_asked_again(failure, capfd):
    with Scripted(failure, failure, answer=lambda request: said("[[7]]")) as server:
        assert judge(server).ask(ASKED).text == "[[7]]"
        assert len(server.requests) == 3
    told = capfd.readouterr().err.splitlines()
    assert len(told) == 2 and told[0].startswith("judge http://127.0.0.1:") and told[1].endswith("answers again")


def test_patience_has_an_end():
    with Scripted(answer=lambda request: (429, {"error": {"message": "quota"}})) as server:
        with pytest.raises(UserError, match=r"^mt_bench.judge.url: .* gave no judgment for 0.4 s \(429: quota\)"):
            judge(server, patience_s=0.4).ask(ASKED)
        assert len(server.requests) >= 2


@pytest.mark.parametrize(
    "status,says",
    [(401, "environment variable that mt_bench"), (403, "environment variable"), (404, "check mt_bench.judge.url")],
)
def test_what_no_request_would_get_ends_it_at_once(status, says):
    with Scripted(answer=lambda request: (status, {"error": {"message": "no\nway"}})) as server:
        with pytest.raises(UserError, match=rf"refuses \({status}: no way\).*{says}"):
            judge(server).ask(ASKED)
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    "answer,why",
    [
        ((200, {}), "not a chat completion"),
        ((200, [1]), "not a chat completion"),
        ((200, {"choices": []}), "not a chat completion"),
        (said(None), "without text"),
        (said([{"type": "text"}]), "without text"),
        ((400, {"error": {"message": "too long"}}), "400: too long"),
        ((422, {"error": "odd"}), "422: odd"),
    ],
)
def test_one_judgment_may_fail(answer, why):
    with Scripted(answer=lambda request: answer) as server:
        reply = judge(server).ask(ASKED)
    assert reply.text is None and why in reply.failure


def test_tokens_that_are_no_counts_count_nothing():
    with Scripted(said("x", usage=None), said("x", usage={"prompt_tokens": "7"}), said("x", usage=[])) as server:
        asked = judge(server)
        assert [asked.ask(ASKED).prompt_tokens for _ in range(2)] == [0, 0]
        assert asked.ask(ASKED).text in ("x", None)


def test_newer_models_call_the_limit_by_another_name():
    def answer(request: dict) -> tuple[int, object]:
        wrong = "max_tokens" in request
        return (400, {"error": {"message": "use 'max_completion_tokens'"}}) if wrong else said("[[7]]")

    with Scripted(answer=answer) as server:
        asked = judge(server, max_tokens=50)
        assert [asked.ask(ASKED).text for _ in range(2)] == ["[[7]]", "[[7]]"]
        assert [request.get("max_completion_tokens") for *_, request in server.requests] == [None, 50, 50]


def questions(count: int) -> dict[str, list[dict]]:
    return {str(number): [{"role": "user", "content": str(number)}] for number in range(count)}


def echo(request: dict) -> tuple[int, object]:
    return said(request["messages"][0]["content"])


def test_all_are_asked_once_on_so_many_connections():
    found: dict[str, str] = {}
    with Scripted(delay_s=0.02, answer=echo) as server:
        judge(server, connections=4).ask_all(questions(40), lambda key, reply: found.update({key: reply.text}), 1.0)
        assert len(server.requests) == 40 and 2 <= server.most <= 4
    assert found == {key: key for key in questions(40)}


def test_a_server_that_judges_nothing_is_told_before_all_are_asked():
    with Scripted(answer=lambda request: (400, {"error": {"message": "no such model"}})) as server:
        with pytest.raises(UserError, match=r"^mt_bench.judge: m at .* gave no judgment \(400: no such model\)"):
            judge(server).ask_all(questions(40), lambda key, reply: pytest.fail("nothing was judged"), 1.0)
        assert len(server.requests) == 3


def test_first_ones_that_fail_are_failures_if_others_do_not():
    def answer(request: dict) -> tuple[int, object]:
        return (400, {"error": "too long"}) if request["messages"][0]["content"] in "01" else echo(request)

    found = {}
    with Scripted(answer=answer) as server:
        judge(server).ask_all(questions(10), lambda key, reply: found.update({key: reply.text}), 1.0)
        assert len(server.requests) == 10
    assert [key for key, text in found.items() if text is None] == ["0", "1"] and len(found) == 10


def test_what_is_under_way_when_it_is_left_is_handed_over_and_nothing_else_begins():
    found = []
    ready = threading.Event()

    def take(key: str, reply: Reply) -> None:
        found.append(key)
        if len(found) == 5 and not ready.is_set():
            ready.set()
            raise SystemExit(143)  # as a signal's handler does

    with Scripted(delay_s=0.1, answer=echo) as server:
        with pytest.raises(SystemExit):
            judge(server, connections=4).ask_all(questions(40), take, 5.0)
        asked = [request["messages"][0]["content"] for *_, request in server.requests]
    assert sorted(set(found)) == sorted(asked) and len(asked) == len(set(asked)) < 12


def test_addresses_and_keys(monkeypatch):
    for url in ("http://h/v1", "http://h/v1/", "http://h/v1/chat/completions"):
        assert endpoint(url) == "http://h/v1/chat/completions"
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(UserError, match=r"^mt_bench.judge.key_env: the environment variable MY_KEY is not set"):
        key_of(JudgeConfig(key_env="MY_KEY"))
    assert key_of(JudgeConfig(key_env=None)) is None
