"""Which reward server answers: told, kept, and compared when a run goes on or the server comes back."""

import pytest
from reward_server import Scripted, honest

from starling_train.config.sections import RewardConfig
from starling_train.rewards import served, server_facts
from starling_train.rewards.server_facts import differences, succeeding

FIRST = {"kind": "starling_7b", "max_length": 2048, server_facts.PROBE: -1.0}


@pytest.mark.parametrize(
    "now,different",
    [
        (FIRST, []),
        (FIRST | {server_facts.PROBE: -1.04}, []),  # another batch, a short type of numbers
        (FIRST | {server_facts.PROBE: 2.0}, ["its score of a made-up conversation -1, now 2"]),
        (FIRST | {"max_length": 1024}, ["max_length 2048, now 1024"]),
        ({"kind": "starling_7b", server_facts.PROBE: -1.0}, ["max_length 2048, now not told"]),
        (FIRST | {"version": "2"}, ["version not told, now 2"]),
    ],
)
def test_what_differs_between_two_servers(now, different):
    assert differences(FIRST, now) == different


def test_a_run_keeps_the_servers_of_its_earlier_starts():
    assert succeeding(None, FIRST) == (FIRST, None)
    assert succeeding(FIRST, FIRST) == (FIRST, None)
    second = FIRST | {"kind": "starling_34b"}
    kept, line = succeeding(FIRST, second)
    assert kept == second | {"earlier": [FIRST]}
    assert line.startswith(
        "warning: reward.url: another server than the one that scored earlier steps (kind starling_7b"
    )
    assert succeeding(kept, second) == (kept, None)  # a third start, still the second server
    assert succeeding(kept, FIRST)[0]["earlier"] == [FIRST, second]
    assert server_facts.described(kept) == "kind starling_34b, max_length 2048, after 1 other in earlier starts"


TOLD = {
    "starling": ({"/health": {"status": "ok", "version": "1", "kind": "starling_7b", "max_length": 9}},
                 {"version": "1", "kind": "starling_7b", "max_length": 9}),
    "vllm": ({"/version": {"version": "0.32.0"}, "/v1/models": {"data": [{"id": "rm", "max_model_len": 4096}]}},
             {"version": "0.32.0", "id": "rm", "max_model_len": 4096}),
    "sglang": ({"/get_model_info": {"model_path": "a/b", "is_generation": False}, "/get_server_info": {"version": "5"}},
               {"model_path": "a/b", "is_generation": False, "version": "5"}),
    "tei": ({"/info": {"model_id": "a/b", "model_sha": None, "model_type": {"classifier": {"id2label": {}}}}},
            {"model_id": "a/b", "model_type": "classifier"}),
    "openrlhf": ({"/health": ["odd"]}, {}),
}  # fmt: skip


@pytest.mark.parametrize("protocol", TOLD)
def test_what_every_kind_of_server_tells_is_found(protocol):
    tells, facts = TOLD[protocol]
    with Scripted() as server:
        server.told = tells
        url = f"http://127.0.0.1:{server.server_port}/get_reward".removesuffix(
            "" if protocol == "openrlhf" else "/get_reward"
        )
        config = RewardConfig(kind="server", url=url, protocol=protocol)
        client = served.RewardClient(config, Letters())
        assert server_facts.told(client._http, config) == facts
        client.close()


class Letters:
    """Sends anything: only what is told matters."""

    truncated = shortened = 0

    def item(self, messages):
        return messages


def test_a_server_that_comes_back_as_another_one_is_said(capsys):
    with Scripted() as server:
        server.told = {"/health": {"kind": "starling_7b", "max_length": 2048}}
        url = f"http://127.0.0.1:{server.server_port}"
        client = served.load(RewardConfig(kind="server", url=url, patience_s=5))
        assert client.facts == {"kind": "starling_7b", "max_length": 2048, server_facts.PROBE: len("2 + 2 is 4.")}
        asked = server_facts.made_up()[:1]
        server.script += [(503, {})]
        client.score(asked)
        assert "another server" not in capsys.readouterr().err
        server.told = {"/health": {"kind": "starling_7b", "max_length": 512}}
        server.script += [(503, {})]
        client.score(asked)
        said = capsys.readouterr().err
    assert "has come back as another server (max_length 2048, now 512)" in said


def test_a_server_that_tells_nothing_is_known_by_its_score():
    scores = []
    for factor in (1, 3):
        with Scripted(
            answer=lambda request, factor=factor: (200, {"scores": [factor * s for s in honest(request)[1]["scores"]]})
        ) as server:
            client = served.load(RewardConfig(kind="server", url=f"http://127.0.0.1:{server.server_port}"))
            scores.append(client.facts)
    assert differences(*scores) == ["its score of a made-up conversation 11, now 33"]
