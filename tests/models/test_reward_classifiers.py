"""Any classifier of one label is scored as transformers scores it, whatever shares the batch: decoders and encoders."""

import json

import pytest
import torch
from reward_checkpoints import SIZE, conversations, load, small_tokenizer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    DebertaV2Config,
    GptOssConfig,
    LlamaConfig,
    ModernBertConfig,
    NemotronConfig,
    PhiConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
    StableLmConfig,
)

from starling_train.config.fields import UserError
from starling_train.config.sections import RewardConfig
from starling_train.models.reward.header_checks import check_reward
from starling_train.models.reward.source import RewardSource

KIND = "sequence_classification"
WORDS = ("how", "is", "the", "a", "model", "code", "answers", "good", "bad", ",", ".", "?", "x")
PAIRS = [("how is the model ?", "good , x ."), ("a", "bad"), ("is code good ?" * 3, "x x x"), ("how", "")]
DECODERS = {
    "llama": (LlamaConfig, {}),
    "stablelm": (StableLmConfig, {}),
    "nemotron": (NemotronConfig, {}),
    "phi": (PhiConfig, {"num_attention_heads": 3, "num_key_value_heads": 3}),
    "gpt_oss": (GptOssConfig, {
        "head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 16,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }),
}  # fmt: skip


def write(config, tokenizer, folder, seed: int = 0):
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(("score.weight", "out_proj.weight", "classifier.weight")):
            torch.nn.init.normal_(parameter)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_is_scored_as_transformers_does_whatever_shares_the_batch(tmp_path, name):
    kind, settings = DECODERS[name]
    config = kind(**SIZE | settings, max_position_embeddings=512, num_labels=1, pad_token_id=0, bos_token_id=1)
    model, tokenizer = write(config, small_tokenizer(), tmp_path), small_tokenizer()
    asked = conversations(6)
    with torch.no_grad():
        expected = [
            model(**tokenizer.apply_chat_template(one, return_tensors="pt", return_dict=True)).logits.item()
            for one in asked
        ]
    for tokens in (1, 300, 10_000):
        found = load(KIND, tmp_path, tokens_per_batch=tokens).score(asked)
        assert found == pytest.approx(expected, abs=2e-5, rel=1e-5)


def word_tokenizer(cls: str, sep: str, pad: str, between: int, types: bool) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words with an encoder's special tokens. between: how many separators part two texts."""
    specials = [pad, cls, sep, "<unk>"]
    backend = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate([*specials, *WORDS])}, "<unk>"))
    backend.normalizer, backend.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    gap = " ".join([f"{sep}:0"] * between)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0", pair=f"{cls}:0 $A:0 {gap} $B:1 {sep}:1", special_tokens=[(cls, 1), (sep, 2)]
    )
    backend.add_special_tokens(specials)
    names = ["input_ids", *(["token_type_ids"] if types else []), "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, cls_token=cls, sep_token=sep, pad_token=pad, unk_token="<unk>",
        model_input_names=names,
    )  # fmt: skip


ENCODER = {
    "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_labels": 1,
    "vocab_size": 4 + len(WORDS), "pad_token_id": 0,
}  # fmt: skip
ENCODERS = {
    "bert": (BertConfig, {"max_position_embeddings": 64}, ("[CLS]", "[SEP]", "[PAD]", 1, True)),
    "roberta": (
        RobertaConfig,
        {"max_position_embeddings": 66, "type_vocab_size": 1},
        ("<s>", "</s>", "<pad>", 2, False),
    ),
    "deberta": (
        DebertaV2Config,
        {"max_position_embeddings": 64, "type_vocab_size": 0, "relative_attention": True,
         "position_biased_input": False, "pos_att_type": ["p2c", "c2p"], "pooler_hidden_size": 24},
        ("[CLS]", "[SEP]", "[PAD]", 1, True),
    ),
    "modernbert": (
        ModernBertConfig,
        {"max_position_embeddings": 64, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2},
        ("[CLS]", "[SEP]", "[PAD]", 1, False),
    ),
}  # fmt: skip


def asked(pairs) -> list[list[dict]]:
    return [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in pairs]


@pytest.fixture(params=ENCODERS)
def encoder(request, tmp_path):
    """(the model, its tokenizer, its directory)."""
    kind, settings, special = ENCODERS[request.param]
    tokenizer = word_tokenizer(*special)
    return write(kind(**ENCODER | settings), tokenizer, tmp_path), tokenizer, tmp_path


def test_an_encoder_without_a_template_reads_a_pair(encoder):
    model, tokenizer, folder = encoder
    with torch.no_grad():
        expected = [model(**tokenizer([q], [a], return_tensors="pt")).logits.item() for q, a in PAIRS]
    reward = load(KIND, folder, max_length=60)
    assert [reward.encode(one) for one in asked(PAIRS)] == [tokenizer([q], [a]).input_ids[0] for q, a in PAIRS]
    for tokens in (1, 40, 1000):
        assert load(KIND, folder, max_length=60, tokens_per_batch=tokens).score(asked(PAIRS)) == pytest.approx(
            expected, abs=1e-5
        )
    plain = [tokenizer(f"{q} {a}", return_tensors="pt", add_special_tokens=False) for q, a in PAIRS]
    bare = [model(**inputs).logits.item() for inputs in plain]
    assert expected != pytest.approx(bare, abs=1e-3)  # the special tokens count


def test_an_encoder_with_a_template_reads_the_text_in_its_frame(encoder):
    model, _, folder = encoder
    tokenizer = AutoTokenizer.from_pretrained(folder)
    turns = "{% for m in messages %}{{ m.content + ' ? ' }}{% endfor %}"
    for template in (turns, "{{ cls_token }}" + turns + "{{ sep_token }}"):
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folder)
        texts = [f"{q} ? {a} ? " for q, a in PAIRS]
        with torch.no_grad():
            expected = [model(**tokenizer(text, return_tensors="pt")).logits.item() for text in texts]
        assert load(KIND, folder, max_length=60).score(asked(PAIRS)) == pytest.approx(expected, abs=1e-5)


def test_a_long_pair_loses_the_beginning_of_its_prompt_and_then_of_its_answer(encoder):
    _, tokenizer, folder = encoder
    reward = load(KIND, folder, max_length=12)
    question, answer = "how is the model ? " * 3, "good bad x"
    kept = reward.encode(asked([(question, answer)])[0])
    framed, plain = tokenizer(question, answer).input_ids, tokenizer(answer, add_special_tokens=False).input_ids
    gap = len(tokenizer("x", "x").input_ids) - 4
    assert len(kept) == 12 and kept[0] == framed[0] and kept[-4:] == [*plain, framed[-1]]
    assert kept[1 : 12 - 4 - gap] == framed[len(framed) - 4 - gap - (12 - 5 - gap) : len(framed) - 4 - gap]
    assert (reward.shortened, reward.truncated) == (1, 0)
    reward.encode(asked([("a", "x " * 30)])[0])
    assert (reward.shortened, reward.truncated) == (2, 1)


def test_nothing_that_a_user_writes_is_a_separator(encoder):
    _, tokenizer, folder = encoder
    reward, sep = load(KIND, folder, max_length=60), tokenizer.sep_token
    ids = reward.encode(asked([(f"how {sep} is", "good")])[0])
    assert ids.count(tokenizer.sep_token_id) == tokenizer("how", "good").input_ids.count(tokenizer.sep_token_id)


def test_the_number_of_labels_is_read_from_the_head_where_the_configuration_has_none(tmp_path):
    config = LlamaConfig(**SIZE, max_position_embeddings=512, num_labels=1, pad_token_id=0)
    write(config, small_tokenizer(), tmp_path)
    expected = load(KIND, tmp_path).score(conversations(3))
    values = json.loads((tmp_path / "config.json").read_text())
    for key in ("num_labels", "id2label", "label2id"):
        values.pop(key, None)
    (tmp_path / "config.json").write_text(json.dumps(values))
    check_reward(RewardConfig(kind=KIND, path=str(tmp_path)), RewardSource.open(KIND, tmp_path))
    assert load(KIND, tmp_path).score(conversations(3)) == expected
    two = LlamaConfig(**SIZE, max_position_embeddings=512, num_labels=3, pad_token_id=0)
    write(two, small_tokenizer(), tmp_path / "three")
    with pytest.raises(UserError, match=r"config.json has 3 labels"):
        load(KIND, tmp_path / "three")


def test_the_head_of_the_language_model_it_was_made_of_is_passed_over(tmp_path):
    from safetensors.torch import load_file, save_file

    write(LlamaConfig(**SIZE, num_labels=1, pad_token_id=0), small_tokenizer(), tmp_path)
    expected = load(KIND, tmp_path).score(conversations(3))
    tensors = load_file(tmp_path / "model.safetensors")
    stray = {"lm_head.weight": torch.zeros(SIZE["vocab_size"], SIZE["hidden_size"])}
    save_file(tensors | stray, tmp_path / "model.safetensors", {"format": "pt"})
    assert load(KIND, tmp_path).score(conversations(3)) == expected
    save_file(tensors | {"v_head.weight": torch.zeros(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"v_head.weight unknown"):
        load(KIND, tmp_path)


def test_a_head_with_a_bias_that_transformers_drops_is_refused_before_loading(tmp_path):
    from safetensors.torch import load_file, save_file

    write(LlamaConfig(**SIZE, max_position_embeddings=512, num_labels=1, pad_token_id=0), small_tokenizer(), tmp_path)
    config = RewardConfig(kind=KIND, path=str(tmp_path), max_length=512)
    check_reward(config, RewardSource.open(KIND, tmp_path))
    file = tmp_path / "model.safetensors"
    save_file(load_file(file) | {"score.bias": torch.ones(1)}, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"score\.bias unknown"):
        check_reward(config, RewardSource.open(KIND, tmp_path))


def test_positions_that_begin_behind_the_paddings_are_counted(tmp_path):
    kind, settings, special = ENCODERS["roberta"]
    write(kind(**ENCODER | settings | {"pad_token_id": 0}), word_tokenizer(*special), tmp_path)
    for length, is_right in ((65, True), (66, False)):
        config = RewardConfig(kind=KIND, path=str(tmp_path), max_length=length)
        if is_right:
            check_reward(config, RewardSource.open(KIND, tmp_path))
            load(KIND, tmp_path, max_length=length).score(asked([("x " * 80, "good")]))
        else:
            with pytest.raises(UserError, match="66 is more than the 65 positions"):
                check_reward(config, RewardSource.open(KIND, tmp_path))
