"""The judge's client, against servers on loopback that fail in every way."""

import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from reward_server import Scripted

from starling_train.config.evaluate import JudgeConfig
from starling_train.config.fields import UserError
from starling_train.evals.mt_bench.judge import Judge, Reply, endpoint, key_of
from starling_train.run import interruption

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


@pytest.mark.parametrize(
    "failure",
    [
        (429, {"error": {"message": "slow down"}}),
        (500, {}),
        (501, {}),
        (503, {}),
        (520, {}),  # of proxies
        (524, "a timeout"),
        (529, {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}),
        (599, {}),
        None,
        (200, {"error": {"code": 429, "message": "rate limited upstream"}}),  # of routers, which answer 200
        (200, {"error": {"code": "503", "message": "no provider"}}),
        (200, {"choices": [{"error": {"code": 502, "message": "the provider ended"}, "finish_reason": "error"}]}),
    ],
)
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


def test_the_end_of_patience_names_the_proxys_status():
    with Scripted(answer=lambda request: (529, {"error": {"message": "Overloaded"}})) as server:
        with pytest.raises(UserError, match=r"gave no judgment for 0 s \(529: Overloaded\)"):
            judge(server, patience_s=0).ask(ASKED)
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    "status,says",
    [
        (401, "environment variable that mt_bench"),
        (403, "environment variable"),
        (402, "account"),
        (404, "check mt_bench.judge.url"),
    ],
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
        ((422, {"detail": "no such parameter"}), "422: no such parameter"),
        ((418, "a text"), "418: "),
        ((200, {"error": "out of credit"}), "200: out of credit"),
        ((200, {"error": {"message": "no\nsuch provider", "code": 400}}), "200: no such provider"),
        ((200, {"error": {"message": "filtered", "code": "content_filter"}}), "200: filtered"),
        ((200, {"object": "error", "message": "too long", "code": 400}), "200: too long"),
        ((200, {"choices": [{"error": {"message": "cut off"}, "message": {"content": ""}}]}), "200: cut off"),
        (said("[[7]]", error={"message": "half of it"}), "200: half of it"),
    ],
)
def test_one_judgment_may_fail(answer, why):
    with Scripted(answer=lambda request: answer) as server:
        reply = judge(server).ask(ASKED)
    assert reply.text is None and why in reply.failure


def test_an_error_that_is_null_is_none():
    with Scripted(answer=lambda request: said("[[7]]", error=None)) as server:
        assert judge(server).ask(ASKED).text == "[[7]]"


def choice(message: dict, ended: str) -> tuple[int, dict]:
    return 200, {"choices": [{"message": message, "finish_reason": ended}]}


NO_TEXT = "a chat completion without text"
CUT_FIRST = f"{NO_TEXT}: cut at mt_bench.judge.max_tokens, before it said anything"
THOUGHT = {"type": "thinking", "thinking": [{"type": "text", "text": "[[3]]"}]}


@pytest.mark.parametrize(
    "message,ended,text,failure",
    [
        ({"content": "[[7]] beca"}, "length", "[[7]] beca", ""),
        ({"content": "[[7]]"}, "stop", "[[7]]", ""),
        ({"content": ""}, "length", None, CUT_FIRST),
        ({"content": None}, "max_tokens", None, CUT_FIRST),
        ({"content": None, "reasoning_content": "[[3]]"}, "length", None, CUT_FIRST),
        ({"content": " \n", "reasoning": "[[3]]"}, "stop", None, NO_TEXT),
        ({"content": "[[9]]", "reasoning_content": "[[3]]"}, "stop", "[[9]]", ""),
        ({"content": "[[9]]", "reasoning": "[[3]]"}, None, "[[9]]", ""),
        ({"content": [THOUGHT, {"type": "text", "text": "[[9]]"}]}, "stop", "[[9]]", ""),
        ({"content": [{"type": "reasoning", "text": "[[3]]"}]}, "stop", None, NO_TEXT),
        ({"content": [{"type": "text", "text": "[["}, {"type": "output_text", "text": "9]]"}]}, "stop", "[[9]]", ""),
    ],
)
def test_what_is_said_and_how_it_ended(message, ended, text, failure):
    with Scripted(answer=lambda request: choice(message, ended)) as server:
        reply = judge(server).ask(ASKED)
    assert (reply.text, reply.failure, reply.ended) == (text, failure, ended or "")


def test_what_a_judge_refuses_is_not_sent():
    """A judge as o1 is: any temperature but its own and the old name of the limit are refused."""

    def answer(request: dict) -> tuple[int, object]:
        refused = {"temperature", "max_tokens"} & request.keys()
        return (400, {"error": {"message": f"unsupported: {sorted(refused)}"}}) if refused else said("[[7]]")

    settings = {"temperature": None, "max_tokens_name": "max_completion_tokens", "max_tokens": 50}
    with Scripted(answer=answer) as server:
        assert judge(server, **settings).ask(ASKED).text == "[[7]]"
        ((_, _, body),) = server.requests
    assert body == {"model": "m", "messages": ASKED, "max_completion_tokens": 50}


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_the_temperature_is_the_one_that_is_given(temperature):
    with Scripted(answer=lambda request: said("[[7]]")) as server:
        judge(server, temperature=temperature).ask(ASKED)
        assert server.requests[0][2]["temperature"] == temperature


@pytest.mark.parametrize(
    "refusal,advice",
    [
        ("'temperature' does not support 0 with this model", "give mt_bench.judge.temperature=null"),
        ("temperature must be 1", "give mt_bench.judge.temperature=null"),
        ("Unrecognized argument: max_tokens", "give mt_bench.judge.max_tokens_name"),
        ("no such model", "check mt_bench.judge.model and mt_bench.judge.url"),
    ],
)
def test_a_refusal_says_which_key_helps(refusal, advice):
    with Scripted(answer=lambda request: (400, {"error": {"message": refusal}})) as server:
        with pytest.raises(UserError, match=advice):
            judge(server).ask_all(questions(5), lambda key, reply: None, 1.0)
        assert len(server.requests) == 3


def test_many_at_once_learn_the_limits_name():
    """With judgments from an earlier start none is tried out alone: each of the first ones is refused by itself."""

    def answer(request: dict) -> tuple[int, object]:
        wrong = "max_tokens" in request
        return (400, {"error": {"message": "use 'max_completion_tokens'"}}) if wrong else echo(request)

    found: dict[str, Reply] = {}
    with Scripted(delay_s=0.02, answer=answer) as server:
        asked = judge(server, connections=8)
        asked.ask_all(questions(20), lambda key, reply: found.update({key: reply}), 1.0, is_known=True)
    assert {key: reply.text for key, reply in found.items()} == {key: key for key in questions(20)}


def test_a_judge_that_has_judged_may_refuse_all_that_is_left():
    found: dict[str, Reply] = {}
    with Scripted(answer=lambda request: (400, {"error": "too long"})) as server:
        judge(server).ask_all(questions(5), lambda key, reply: found.update({key: reply}), 1.0, is_known=True)
    assert len(found) == 5 and {reply.failure for reply in found.values()} == {"400: too long"}


@pytest.mark.parametrize(
    "header,sent", [("api-key", "secret-1"), ("x-api-key", "secret-1"), ("authorization", "Bearer secret-1")]
)
def test_azures_address_and_key(monkeypatch, header, sent):
    monkeypatch.setenv("MY_KEY", "secret-1")
    with Scripted(answer=lambda request: said("[[7]]")) as server:
        url = f"http://127.0.0.1:{server.server_port}/openai/deployments/gpt-4?api-version=2024-10-21"
        assert judge(server, url=url, key_env="MY_KEY", key_header=header).ask(ASKED).text == "[[7]]"
        ((path, headers, _),) = server.requests
    assert path == "/openai/deployments/gpt-4/chat/completions?api-version=2024-10-21"
    assert {name.lower(): value for name, value in headers.items()}[header] == sent
    assert ("authorization" in {name.lower() for name in headers}) == (header == "authorization")


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


@pytest.mark.parametrize("number", [0, 1, 6])
def test_a_signal_between_a_request_and_its_note_loses_no_judgment(monkeypatch, number):
    """The first request too, on which the others wait."""
    found: dict[str, str] = {}
    sent: list[str] = []

    class Pool(ThreadPoolExecutor):
        def submit(self, function, messages):
            future = super().submit(function, messages)
            sent.append(messages[0]["content"])
            if len(sent) == number + 1:
                time.sleep(0.05)  # the request is under way
                interruption.interrupt(signal.SIGTERM)
            return future

    monkeypatch.setattr("starling_train.evals.mt_bench.judge.ThreadPoolExecutor", Pool)
    interruption.forget()
    with Scripted(delay_s=0.2, answer=echo) as server:
        with pytest.raises(interruption.Interrupted) as left:
            judge(server, connections=3).ask_all(questions(20), lambda key, reply: found.update({key: reply.text}), 5.0)
        asked = [request["messages"][0]["content"] for *_, request in server.requests]
    interruption.forget()
    assert left.value.exit_code == 143 and len(sent) == number + 1
    assert sorted(found) == sorted(asked) == sorted(sent)


def test_addresses_and_keys(monkeypatch):
    for url in ("http://h/v1", "http://h/v1/", "http://h/v1/chat/completions"):
        assert endpoint(url) == "http://h/v1/chat/completions"
    for url in ("http://h/v1?a=1&b=2", "http://h/v1/?a=1&b=2", "http://h/v1/chat/completions?a=1&b=2"):
        assert endpoint(url) == "http://h/v1/chat/completions?a=1&b=2"
    assert endpoint("http://h:1?a=x/y") == "http://h:1/chat/completions?a=x/y"
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(UserError, match=r"^mt_bench.judge.key_env: the environment variable MY_KEY is not set"):
        key_of(JudgeConfig(key_env="MY_KEY"))
    assert key_of(JudgeConfig(key_env=None)) is None
