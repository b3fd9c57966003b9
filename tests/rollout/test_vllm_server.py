"""What a run makes of a server of vLLM that is away, a new one, somebody else's or wrong.

The server is imitated, because a real one cannot be told when to fail; `test_vllm.py` has real ones.
"""

import threading

import families
import openchat_tokenizer
import pytest
import torch
from imitated_vllm import ImitatedVllm

from starling_train.config.fields import UserError
from starling_train.config.sections import RolloutConfig
from starling_train.data.chat import Chat
from starling_train.rollout.responses import Rollout
from starling_train.rollout.vllm import server
from starling_train.rollout.vllm.request import Ends, sampling
from starling_train.rollout.vllm.server import VllmServer

PROMPTS = [[5, 6, 7, number] for number in range(20, 32)]


@pytest.fixture(scope="module")
def chat():
    return Chat(openchat_tokenizer.small())


@pytest.fixture
def policy(chat):
    model = families.model_of("llama3", vocab_size=len(chat.tokenizer)).requires_grad_(False)
    model.get_parameter("model.layers.1.self_attn.q_proj.weight").requires_grad_(True)
    return model


@pytest.fixture
def served(policy):
    made = ImitatedVllm(policy)
    yield made
    made.close()


def config(served: ImitatedVllm, folder, **changed) -> RolloutConfig:
    return RolloutConfig(
        **{"engine": "vllm_server", "url": served.url, "weights_dir": str(folder), "slots": 2, "max_new_tokens": 6,
           "patience_s": 2.0, "stop_strings": []} | changed
    )  # fmt: skip


def train(policy) -> None:
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))


def draw(client: VllmServer, policy, chat, settings, on_done=lambda number, response: None):
    client.follow(policy)
    return client.draw(policy, chat, PROMPTS, settings, True, on_done)


def expected(policy, settings) -> list[list[int]]:
    """Greedy responses of the policy itself, by its plain forward."""
    alone = ImitatedVllm(policy)
    try:
        body = {"max_tokens": settings.max_new_tokens, "stop_token_ids": []}
        return [alone._complete(body | {"prompt": prompt})["token_ids"] for prompt in PROMPTS]
    finally:
        alone.close()


def test_it_is_sent_all_once_and_then_what_trains(policy, served, chat, tmp_path):
    settings = config(served, tmp_path)
    client = VllmServer(settings)
    assert draw(client, policy, chat, settings).responses == expected(policy, settings)
    draw(client, policy, chat, settings)
    assert len(served.sent) == 1 and "model.embed_tokens.weight" in served.sent[0]  # nothing has changed
    train(policy)
    found = draw(client, policy, chat, settings)
    assert found.responses == expected(policy, settings) and not list(tmp_path.glob("*-*-*-*/"))
    assert served.sent[1:] == [{f"model.layers.1.self_attn.{one}_proj.weight" for one in "qkv"}]
    rollout = Rollout(PROMPTS, found.responses, [False] * len(PROMPTS), drawn_logprobs=found.logprobs)
    assert rollout.only([3, 1]).drawn_logprobs == [found.logprobs[3], found.logprobs[1]]


def test_one_process_sends_for_all(policy, served, chat, tmp_path):
    settings = config(served, tmp_path)
    clients = [VllmServer(settings) for _ in range(3)]
    responses = []
    threads = [
        threading.Thread(target=lambda one=one: responses.append(draw(one, policy, chat, settings).responses))
        for one in clients
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(served.sent) == 1 and responses == [expected(policy, settings)] * 3


def test_what_another_start_has_drawn_is_drawn_again(policy, served, chat, tmp_path):
    settings = config(served, tmp_path)
    client = VllmServer(settings)
    client.follow(policy)
    train(policy)
    handed_on: list[int] = []
    # in the middle of the second part of the prompts (4 rounds of 2 are a part), beside probes and the first part
    began: list[int] = []
    served.before = lambda number: began.append(number) or (served.restart() if len(began) == 12 else None)
    found = draw(client, policy, chat, settings, lambda number, response: handed_on.append(number))
    assert found.responses == expected(policy, settings) and handed_on == list(range(len(PROMPTS)))
    assert len(served.sent) == 3 and served.sent[2] == served.sent[0]  # all, to the one that was started again


def test_another_runs_weights_are_noticed(policy, served, chat, tmp_path):
    settings = config(served, tmp_path)
    client, other = VllmServer(settings), VllmServer(settings)
    theirs = families.model_of("llama3", seed=3, vocab_size=len(chat.tokenizer))
    client.follow(policy)
    other.follow(theirs)
    with pytest.raises(UserError, match=r"another run has sent its weights to http.*; give each run a server"):
        client.draw(policy, chat, PROMPTS, settings, True, lambda number, response: None)


def test_it_waits_for_a_server_that_fails_for_a_while(policy, served, chat, tmp_path):
    settings = config(served, tmp_path)
    served.failing = {"/v1/completions": [503, 502], "/reset_prefix_cache": [503]}
    served.broken_off = 2
    assert draw(VllmServer(settings), policy, chat, settings).responses == expected(policy, settings)


@pytest.mark.parametrize(
    ("failing", "changed", "says"),
    [
        ({"/collective_rpc": [404]}, {}, r"refuses \(404: told to fail\); start it as VLLM_SERVER_DEV_MODE=1"),
        ({"/collective_rpc": [500]}, {}, r"refuses \(500: told to fail\).*\(rollout\.weights_dir\)"),
        ({"/v1/completions": [400]}, {}, r"refuses \(400: told to fail\); see what its log says"),
        ({"/v1/completions": [503] * 99}, {"patience_s": 0.3}, r"gave no answer for 0\.3 s \(503: told to fail\)"),
    ],
)
def test_what_will_not_change_is_said_in_one_line(policy, served, chat, tmp_path, failing, changed, says):
    settings = config(served, tmp_path, **changed)
    served.failing = failing
    with pytest.raises(UserError, match=rf"rollout\.url: {served.url}/\S+ .*{says}") as caught:
        draw(VllmServer(settings), policy, chat, settings)
    assert "\n" not in str(caught.value) and not list(tmp_path.glob("starling-vllm-*-*/"))


def test_a_key_a_short_server_and_one_without_metrics(policy, chat, tmp_path, monkeypatch):
    guarded = ImitatedVllm(policy, key="hunter2", most=30)
    settings = config(guarded, tmp_path)
    try:
        with pytest.raises(UserError, match=r"put its key into STARLING_VLLM_TOKEN \(rollout\.token_env\)") as caught:
            draw(VllmServer(settings), policy, chat, settings)
        assert "hunter2" not in str(caught.value)
        monkeypatch.setenv("STARLING_VLLM_TOKEN", "hunter2")
        monkeypatch.setattr(server, "_server", None)
        assert "log-probs are within" in server.line(policy, settings, longest=30)
        with pytest.raises(UserError, match=r"takes 30 tokens, .* may have 31; serve with --max-model-len 31"):
            server.line(policy, settings, longest=31)
        monkeypatch.setattr(guarded, "get", lambda handler: handler.send_error(404))
        with pytest.raises(UserError, match=r"has no process_start_time_seconds.*--api-server-count 1"):
            VllmServer(settings).follow(policy)
    finally:
        guarded.close()


def test_after_a_signal_nobody_waits(policy, served, chat, tmp_path):
    settings = config(served, tmp_path)
    client = VllmServer(settings)

    def interrupted(number, response):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw(client, policy, chat, settings, interrupted)
    client = VllmServer(settings)
    client.follow(policy)
    served.failing = {"/v1/completions": [400] + [503] * 99}
    with pytest.raises(UserError):
        client.draw(policy, chat, PROMPTS, settings, True, lambda number, response: None)
    assert client.is_closed


def test_a_request_says_everything(policy, chat):
    settings = RolloutConfig(
        max_new_tokens=9, min_new_tokens=2, temperature=0.7, top_p=0.9, top_k=5, stop_strings=["\n"]
    )
    asked = sampling(policy, chat, settings, greedy=False)
    assert (asked["max_tokens"], asked["min_tokens"], asked["temperature"]) == (9, 2, 0.7)
    assert (asked["top_p"], asked["top_k"], asked["stop"]) == (0.9, 5, ["\n"]) and asked["ignore_eos"]
    assert asked["stop_token_ids"] == sorted(chat.end_ids) and "logit_bias" not in asked
    greedy = sampling(policy, chat, settings, greedy=True)
    assert (greedy["temperature"], greedy["top_p"], greedy["top_k"]) == (0.0, 1.0, 0)
    for one in (asked, greedy):
        assert (one["repetition_penalty"], one["min_p"], one["logprobs"]) == (1.0, 0.0, 0)


def test_ids_without_a_token_are_not_drawn(chat):
    size = len(chat.tokenizer)
    asked = sampling(
        families.model_of("llama3", vocab_size=size + 3), chat, RolloutConfig(stop_strings=[]), greedy=False
    )
    assert asked["logit_bias"] == {size: -100.0, size + 1: -100.0, size + 2: -100.0} and "stop" not in asked


def test_what_comes_behind_a_stop_string_goes(chat):
    ids = chat.template.plain("one two\nthree")
    ends = Ends(chat, RolloutConfig(stop_strings=["\n"]))
    cut, logprobs = ends.cut(ids, [-float(index) for index in range(len(ids))])
    assert chat.text(cut).endswith("\n") and cut == ids[: len(cut)] and len(cut) < len(ids)
    assert logprobs == [-float(index) for index in range(len(cut))]
    assert Ends(chat, RolloutConfig(stop_strings=[])).cut(ids, [0.0] * len(ids))[0] == ids
