"""Classifiers behind other people's servers, as their documents describe them: the scores are those of this process."""

import math

import pytest
import torch
from chat_tokenizers import FAMILIES
from reward_server import Scripted
from tokenizers import Tokenizer
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
    Qwen2Config,
    Qwen2ForSequenceClassification,
)

from starling_train.config.fields import UserError
from starling_train.config.sections import RewardConfig, check_reward
from starling_train.models.reward import load_reward_model
from starling_train.rewards import kinds, served

LONGEST = 120
USER = {"role": "user", "content": "What is the capital of France?"}
TALKS = [
    [USER, {"role": "assistant", "content": answer}]
    for answer in ("It is Paris.", "", " Paris\n", "I do not know <|im_end|> what <|im_start|>", "one two " * 60)
]
TALKS.append([{"role": "system", "content": "Be brief."}, *TALKS[0], USER, {"role": "assistant", "content": "Again"}])


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A decoder whose turns end with its padding token, as Llama's reward models' do."""
    path = tmp_path_factory.mktemp("decoder")
    tokenizer = FAMILIES["llama3"].tokenizer()
    tokenizer.pad_token = "<|eot_id|>"
    tokenizer.save_pretrained(path)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = Qwen2Config(
        **size, num_key_value_heads=1, vocab_size=len(tokenizer), num_labels=1, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    net = Qwen2ForSequenceClassification(config)
    torch.nn.init.normal_(net.score.weight, std=3.0)
    net.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(directory):
    return load_reward_model("sequence_classification", directory, dtype="float32", max_length=LONGEST)


def at_last(net, ids: list[int]) -> float:
    """What a server gives for ids: the head's number at the last one, whatever it is."""
    with torch.no_grad():
        states = net.model(torch.tensor([ids])).last_hidden_state
        return float(net.score(states[0, -1]))


@pytest.fixture(scope="module")
def net(directory):
    return Qwen2ForSequenceClassification.from_pretrained(directory, dtype=torch.float32).eval()


def vllm(score):
    def answer(request: dict) -> tuple[int, object]:
        assert request["use_activation"] is False
        rows = [{"index": i, "label": "LABEL_0", "probs": [score(ids)], "num_classes": 1}
                for i, ids in enumerate(request["input"])]  # fmt: skip
        return 200, {"object": "list", "model": "m", "data": rows, "usage": {"prompt_tokens": 1}}

    return answer


def pooled(score):
    """vLLM's /pooling; the rows out of order."""

    def answer(request: dict) -> tuple[int, object]:
        rows = [{"index": i, "object": "pooling", "data": [score(ids)]} for i, ids in enumerate(request["input"])]
        return 200, {"object": "list", "data": rows[::-1]}

    return answer


def sglang(score):
    def answer(request: dict) -> tuple[int, object]:
        return 200, [{"embedding": [score(ids)], "meta_info": {"id": "x"}} for ids in request["input_ids"]]

    return answer


def client(server: Scripted, directory, protocol: str = "vllm", path: str = "", **settings) -> served.RewardClient:
    settings = {"timeout_s": 5, "patience_s": 1, "max_length": LONGEST} | settings
    url = f"http://127.0.0.1:{server.server_port}{path}"
    return served.RewardClient(
        RewardConfig(kind="server", protocol=protocol, url=url, tokenizer=str(directory), **settings)
    )


@pytest.mark.parametrize(
    "protocol,path,route,answer",
    [
        ("vllm", "", "/classify", vllm),
        ("vllm", "/", "/classify", vllm),
        ("vllm", "/v1", "/classify", vllm),
        ("vllm", "/proxy/classify/", "/proxy/classify", vllm),
        ("vllm", "/pooling", "/pooling", pooled),
        ("sglang", "", "/classify", sglang),
        ("sglang", "/v1/", "/classify", sglang),
    ],
)
def test_scores_are_those_of_the_classifier_in_this_process(directory, model, net, protocol, path, route, answer):
    with Scripted(answer=answer(lambda ids: at_last(net, ids))) as server:
        asked = client(server, directory, protocol, path, conversations_per_request=4)
        asked.check()
        before = model.truncated, model.shortened
        assert asked.score(TALKS) == pytest.approx(model.score(TALKS), abs=1e-5)
        assert {sent for sent, _, _ in server.requests} == {route}
    assert (asked.truncated, asked.shortened) == (model.truncated - before[0], model.shortened - before[1])
    assert asked.shortened == 1


def test_a_name_and_a_key_are_sent(directory, net, monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret")
    with Scripted(answer=vllm(lambda ids: at_last(net, ids))) as server:
        client(server, directory, served_model="rm-2", token_env="MY_KEY").score(TALKS[:1])
        client(server, directory, token_env="MY_KEY", token_header="X-Api-Key").score(TALKS[:1])
        (_, first, body), (_, second, plain) = server.requests
    assert (first["Authorization"], body["model"]) == ("Bearer secret", "rm-2")
    assert second["X-Api-Key"] == "secret" and "model" not in plain and "Authorization" not in second


@pytest.mark.parametrize(
    "answer,says",
    [
        (
            {"data": [{"index": 0, "probs": [0.2, 0.8]}]},
            "gave 2 numbers for one conversation; serve a classifier with one",
        ),
        ({"data": []}, "gave 0 scores for 1"),
        ({"data": [{"index": 3, "probs": [0.2]}]}, "is it a reward server?"),
        ({"data": [{"index": 0, "probs": [True]}]}, "is it a reward server?"),
        ({"data": [{"index": 0, "probs": []}]}, "is it a reward server?"),
        ({"data": [{"embedding": [0.2]}]}, "is it a reward server?"),
        ({"data": "x"}, "is it a reward server?"),
        ([[{"label": "x", "score": 1.0}]], "is it a reward server?"),
        (None, "is it a reward server?"),
        ({"error": "CUDA out\nof memory"}, r"gave no scores (CUDA out of memory); is it a reward server?"),
        ({"error": {"message": "not loaded", "code": 503}}, "gave no scores (not loaded); is it"),
        ({"detail": "queue full"}, "gave no scores (queue full); is it"),
    ],
)
def test_an_answer_of_another_shape_is_one_line(directory, answer, says):
    with Scripted((200, answer)) as server, pytest.raises(UserError) as caught:
        client(server, directory).score(TALKS[:1])
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("odd", [None, math.nan, math.inf])
def test_a_score_that_is_no_number_is_left_out_alone(directory, odd):
    scores = iter([1.0, odd, 3.0])
    with Scripted(answer=vllm(lambda ids: next(scores))) as server:
        found = client(server, directory).score(TALKS[:3])
    assert (found[0], found[2]) == (1.0, 3.0) and math.isnan(found[1])


def test_an_item_that_the_server_refuses_is_left_out_alone(directory, net, capsys):
    def answer(request: dict) -> tuple[int, object]:
        if any(len(ids) >= LONGEST - 1 for ids in request["input"]):
            return 400, {"error": {"message": "too long for me", "type": "BadRequestError"}}
        return vllm(lambda ids: at_last(net, ids))(request)

    with Scripted(answer=answer) as server:
        asked = client(server, directory, conversations_per_request=8)
        scores, each = asked.score(TALKS), asked.score_each(TALKS)
        refused = [index for index, score in enumerate(scores) if math.isnan(score)]
        assert refused and [isinstance(one, UserError) for one in each] == [math.isnan(score) for score in scores]
        assert "too long for me" in str(each[refused[0]])
        assert capsys.readouterr().err.count("refuses a conversation (400: too long for me): left out") == 1
        with pytest.raises(UserError, match="refuses all 1 conversations"):
            asked.score([TALKS[refused[0]]])


@pytest.mark.parametrize("score", [1.0, 0.0])
def test_one_label_behind_a_softmax_is_found_before_a_run(directory, score):
    with Scripted(answer=vllm(lambda ids: score)) as server, pytest.raises(UserError, match="a softmax over one label"):
        client(server, directory).check()


def test_scores_that_look_like_a_sigmoid_s_are_said(directory, net, capsys):
    with Scripted(answer=sglang(lambda ids: 1 / (1 + math.exp(-at_last(net, ids))))) as server:
        client(server, directory, "sglang").check()
    assert "lie between 0 and 1" in capsys.readouterr().err


MODELS = {"object": "list", "data": [{"id": "rm", "root": "/x/rm", "max_model_len": 64}, {"id": "other"}]}


@pytest.mark.parametrize(
    "protocol,told,settings,says",
    [
        ("vllm", {"/v1/models": MODELS}, {}, "reward.max_length: 120 is more than the 64 tokens"),
        ("vllm", {"/v1/models": MODELS}, {"served_model": "x"}, "does not serve x; it has rm, other"),
        ("sglang", {"/get_model_info": {"is_generation": True}}, {}, "start sglang with --is-embedding"),
        ("tei", {"/info": {"model_type": {"embedding": {"pooling": "cls"}}}}, {}, "an embedding model"),
        ("tei", {"/info": {"max_input_length": 64}}, {}, "reward.max_length: 120 is more than the 64"),
    ],
)
def test_what_a_server_tells_is_compared_before_a_run(directory, protocol, told, settings, says):
    with Scripted() as server, pytest.raises(UserError, match=says):
        server.told = told
        client(server, directory, protocol, **settings).check()
    assert not server.requests


def tei(scores: list[float]):
    def answer(request: dict) -> tuple[int, object]:
        assert request["raw_scores"] is True and request["truncate"] is False
        return 200, [[{"label": "LABEL_0", "score": scores.pop(0)}] for _ in request["inputs"]]

    return answer


def read(tokenizer, texts: list[str]) -> list[int]:
    """Tokenise as TEI does, by the tokenizers library alone."""
    return Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()).encode(*texts).ids


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """BERT, which has no chat template and reads a pair."""
    path = tmp_path_factory.mktemp("encoder")
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *"[]?.",
        "sep",
        "what",
        "is",
        "the",
        "capital",
        "of",
        "one",
        "two",
    ]
    (path / "vocab.txt").write_text("\n".join([*words, *"abcdefghijklmnopqrstuvwxyz"]))
    BertTokenizerFast(str(path / "vocab.txt")).save_pretrained(path)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    BertForSequenceClassification(
        BertConfig(**size, vocab_size=60, num_labels=1, initializer_range=0.5)
    ).save_pretrained(path)
    return path


def test_an_encoder_is_sent_its_pair_of_texts(encoder):
    """The server tokenises: what it reads is what the model in this process reads, or it is not sent."""
    model = load_reward_model("sequence_classification", encoder, dtype="float32", max_length=40)
    talks = [*TALKS[:3], TALKS[4], [USER, {"role": "assistant", "content": "see [SEP] this"}]]
    with Scripted(answer=tei([float(n) for n in range(9)])) as server:
        asked = client(server, encoder, "tei", "/predict", max_length=40)
        each = asked.score_each(talks)
        ((_, _, request),) = server.requests
    sent = [read(model.tokenizer, texts) for texts in request["inputs"]]
    assert sent == [model.encode(messages) for messages in talks]  # a typed [SEP] goes as other text
    assert each == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert asked.shortened == 1
    with pytest.raises(UserError, match="types of an encoder of pairs"):
        client(server, encoder, "vllm")


def test_a_pair_has_the_types_that_its_tokenizer_s_class_gives(encoder):
    """In tokenizer_config.json of a BERT no types are named: they are its class's, in this process too."""
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    net = BertForSequenceClassification.from_pretrained(encoder, dtype=torch.float32).eval()
    with torch.no_grad():
        read = tokenizer(USER["content"], "It is Paris.", return_tensors="pt")
        expected = net(**read).logits.item()
        without = net(**{name: value for name, value in read.items() if name != "token_type_ids"}).logits.item()
    model = load_reward_model("sequence_classification", encoder, dtype="float32", max_length=40)
    assert model.score(TALKS[:1]) == pytest.approx([expected], abs=1e-5) and abs(expected - without) > 1e-4


def test_a_decoder_is_sent_the_text_of_its_template(directory, model):
    with Scripted(answer=tei([0.0, 1.0, 2.0])) as server:
        asked = client(server, directory, "tei")
        each = asked.score_each([*TALKS[:3], [USER, {"role": "assistant", "content": "say <|eot_id|>"}]])
        ((_, _, request),) = server.requests
    assert [read(model.tokenizer, texts) for texts in request["inputs"]] == [model.encode(m) for m in TALKS[:3]]
    assert each[:3] == [0.0, 1.0, 2.0] and "no text gives the ids" in str(each[3])


def test_prompts_that_the_served_classifier_s_template_refuses_are_dropped(tmp_path):
    FAMILIES["gemma"].tokenizer().save_pretrained(tmp_path)
    config = RewardConfig(kind="server", protocol="vllm", url="http://host", tokenizer=str(tmp_path), max_length=20)
    odd = [{"role": "system", "content": "x"}, USER]
    admission = kinds.of(config).admit(config, [[USER], odd], [{}] * 2)
    assert admission.refused.keys() == {1} and "System role not supported" in admission.refused[1]
    assert "1 of 2 prompts are longer than reward.max_length=20" in admission.lines[0]


@pytest.mark.parametrize("protocol", ["openrlhf", "vllm", "sglang", "tei"])
def test_without_a_tokenizer_there_is_nothing_to_send(protocol):
    with pytest.raises(
        UserError, match=f"reward.tokenizer: not set; with reward.protocol={protocol} its chat template"
    ):
        check_reward(RewardConfig(kind="server", protocol=protocol, url="http://host"))


@pytest.mark.parametrize("protocol", ["starling", "openrlhf", "tei"])
def test_a_name_that_the_protocol_does_not_have_is_refused(protocol):
    with pytest.raises(UserError, match=r"reward\.served_model: "):
        check_reward(
            RewardConfig(kind="server", protocol=protocol, url="http://host", tokenizer="x", served_model="rm")
        )
