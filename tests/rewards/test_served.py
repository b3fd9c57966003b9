"""The client of a served reward model, against servers on loopback that fail in every way."""

import math
import threading
import time

import pytest
from reward_checkpoints import conversations, small_tokenizer
from reward_server import Scripted, honest

from starling_train.config.fields import UserError
from starling_train.config.sections import RewardConfig
from starling_train.rewards import served, server_app
from starling_train.rewards.items import OpenRlhfText
from starling_train.rewards.served import RewardClient

ASKED = conversations(20)
SCORES = [float(len(messages[-1]["content"])) for messages in ASKED]  # what the servers here answer


def client(port: int, tokenizer=None, **settings) -> RewardClient:
    settings = {"url": f"http://127.0.0.1:{port}", "timeout_s": 5, "patience_s": 5} | settings
    return RewardClient(RewardConfig(kind="server", **settings), OpenRlhfText(tokenizer) if tokenizer else None)


def test_scores_come_in_order_from_parallel_requests():
    with Scripted(delay_s=0.05) as server:
        got = client(server.server_port, connections=4, conversations_per_request=3).score(ASKED)
        assert got == SCORES
        assert len(server.requests) == 7  # 6 of 3 conversations and one of 2
        assert 2 <= server.most <= 4
        assert {path for path, _, _ in server.requests} == {"/score"}


def test_answers_that_the_server_truncated_are_counted():
    def answer(request: dict) -> tuple[int, object]:
        status, said = honest(request)
        return status, said | {"truncated": len(request["conversations"]) - 1}

    with Scripted(answer=answer) as server:
        asked = client(server.server_port, conversations_per_request=3)
        assert (asked.score(ASKED), asked.truncated) == (SCORES, 6 * 2 + 1)
    with Scripted() as server:  # one that does not tell, such as OpenRLHF's
        asked = client(server.server_port)
        assert (asked.score(ASKED), asked.truncated) == (SCORES, 0)


def test_passing_failures_are_tried_again(capsys):
    script = [None, (500, {"error": "out of memory"}), (503, {}), (429, {})]
    with Scripted(*script) as server:
        assert client(server.server_port, conversations_per_request=20).score(ASKED) == SCORES
        assert len(server.requests) == 5
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and "trying again for up to 5 s" in said[0] and "answers again" in said[1]


def test_a_slow_answer_is_asked_for_again():
    with Scripted(delay_s=0.5) as server:
        started = client(server.server_port, timeout_s=0.2, conversations_per_request=20)
        threading.Timer(0.9, lambda: setattr(server, "delay_s", 0.0)).start()
        assert started.score(ASKED) == SCORES
        assert len(server.requests) >= 2


def test_a_server_that_comes_back_is_found_again():
    with Scripted() as server:
        port = server.server_port
        asked = client(port)
        assert asked.score(ASKED) == SCORES
    later: list[Scripted] = []
    threading.Timer(1.0, lambda: later.append(Scripted(port=port))).start()
    assert asked.score(ASKED) == SCORES  # connections of the old server are dead, the port is closed for a second
    later[0].__exit__()


def test_patience_ends_in_one_line():
    with Scripted() as server:
        port = server.server_port
    began = time.monotonic()
    with pytest.raises(UserError) as caught:
        client(port, patience_s=0.6).score(ASKED)
    assert 0.5 < time.monotonic() - began < 4
    message = str(caught.value)
    assert message.startswith("reward.url: http://127.0.0.1:") and "reward.patience_s" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "answer,says",
    [
        ((401, {"error": "no token"}), "401: no token); set the environment variable"),
        ((413, {}), "lower reward.conversations_per_request"),
        ((404, {}), "check reward.url"),
        ((400, {"error": "conversations[0]: bad"}), "conversations[0]: bad"),
        ((200, {"scores": [1.0]}), "gave 1 scores for 20"),
        ((200, {"scores": "many"}), "is it a reward server?"),
        ((200, {"rewards": [1.0] * 20}), "is it a reward server?"),
        ((200, ["scores"]), "is it a reward server?"),
    ],
)
def test_an_answer_that_will_not_change_ends_at_once(answer, says):
    with Scripted(answer, answer) as server:
        with pytest.raises(UserError) as caught:
            client(server.server_port, conversations_per_request=20).score(ASKED)
        assert says in str(caught.value) and len(server.requests) == 1


@pytest.mark.parametrize("odd", [None, float("nan"), float("-inf")])
def test_an_odd_score_is_left_out_alone(odd):
    def answer(request: dict) -> tuple[int, object]:
        status, said = honest(request)
        return status, said | {"scores": [odd, *said["scores"][1:]]}

    with Scripted(answer=answer) as server:
        found = client(server.server_port, conversations_per_request=20).score(ASKED)
    assert math.isnan(found[0]) and found[1:] == SCORES[1:] and len(server.requests) == 1
    assert server_app.or_null([1.0, math.nan if odd is None else odd]) == [1.0, None]  # so our server says it


def test_what_the_template_of_the_text_refuses_is_known_first(tmp_path):
    tokenizer = small_tokenizer()
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system message') }}{% endif %}"
    tokenizer.chat_template = refusing + tokenizer.chat_template
    tokenizer.save_pretrained(tmp_path)
    settings = RewardConfig(kind="server", url="http://host", protocol="openrlhf", tokenizer=str(tmp_path))
    said = [{"role": "user", "content": "Hello"}]
    odd = [{"role": "system", "content": "x"}, *said]
    assert served.admit(settings, [said, odd, said], [{}] * 3).refused.keys() == {1}
    with pytest.raises(UserError, match=r"refuses all 1 prompts: .* refuses 'Hello' \(no system message\)"):
        served.admit(settings, [odd], [{}])
    with Scripted() as server, pytest.raises(UserError, match=r"its chat template refuses 'Hello'"):
        answered = [*odd, {"role": "assistant", "content": "y"}]
        client(server.server_port, tokenizer, protocol="openrlhf").score([answered])
    assert served.admit(RewardConfig(kind="server", url="http://host"), [odd], [{}]).refused == {}


def test_one_refusal_ends_the_patience_of_the_others():
    """One request is refused while another waits for a server that is too busy: no minutes of waiting for nothing."""
    with Scripted((503, {}), (400, {})) as server:
        asked = client(server.server_port, connections=1, conversations_per_request=10, patience_s=60)
        server.script += [(503, {})] * 100
        began = time.monotonic()
        with pytest.raises(UserError):
            asked.score(ASKED)
        assert time.monotonic() - began < 10


def test_the_token_is_sent(monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "s3cret\n")
    with Scripted() as server:
        client(server.server_port, token_env="SOME_TOKEN").score(ASKED[:1])
        client(server.server_port, token_env="NOT_SET_ANYWHERE").score(ASKED[:1])
        headers = [{name.lower(): value for name, value in sent.items()} for _, sent, _ in server.requests]
    assert headers[0]["authorization"] == "Bearer s3cret" and "authorization" not in headers[1]


def test_proxies_of_the_environment_are_not_used(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    with Scripted() as server:
        assert client(server.server_port, patience_s=0).score(ASKED[:1]) == SCORES[:1]


def test_openrlhf_s_server_gets_the_text_of_its_own_template():
    def answered(count):
        return 200, {"rewards": [[0.5]] * count}  # theirs nests a score of shape (batch, 1)

    with Scripted(answered(2)) as server:
        url = f"http://127.0.0.1:{server.server_port}/get_reward"
        asked = client(0, small_tokenizer(), url=url, protocol="openrlhf")
        assert asked.score(ASKED[:2]) == [0.5, 0.5]
        path, _, request = server.requests[0]
    assert path == "/get_reward" and set(request) == {"query", "prompts", "labels"}
    first = ASKED[0]
    # decoded ids: this kind of tokenizer has a space behind each special token; OpenRLHF's prompts are not decoded
    assert request["query"][0] == "".join(f" {m['role']}\n{m['content']}<|im_end|>" for m in first)
    assert request["prompts"][0] == "".join(f"{m['role']}\n{m['content']}<|im_end|>" for m in first[:-1])


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://x", "http://", "http://[::1", ""])
def test_what_is_no_address_is_told(url):
    with pytest.raises(UserError, match=r"^reward\.url: "):
        client(0, url=url)


def test_check_tells_a_wrong_address_before_the_run():
    with Scripted((401, {"error": "no token"})) as server, pytest.raises(UserError, match="token"):
        client(server.server_port).check()
