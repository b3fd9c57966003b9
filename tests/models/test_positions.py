"""How long a sequence may be: as long as its numbers do not depend on its neighbours."""

import sys

import families
import pytest
import torch
from transformers import AutoConfig

from starling_train.config.dpo import DpoConfig
from starling_train.config.fields import UserError
from starling_train.config.ppo import PpoConfig
from starling_train.data.chat import Chat
from starling_train.models.families.positions import alone_above, check_dynamic, positions_of
from starling_train.models.reward.model import RewardModel
from starling_train.models.reward.net import RewardNet
from starling_train.training import policy
from starling_train.training.dpo import inputs

LONG = {
    "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 6, "long_factor": [8.0] * 6,
    "original_max_position_embeddings": 32,
}  # fmt: skip


def test_a_neighbour_beyond_the_original_length_changes_a_short_sequence():
    """Field E1, and why no sequence may be longer: with it in the same pass, the others' log-probabilities move."""
    model = families.model_of("phi3", rope_parameters=LONG, original_max_position_embeddings=32, sliding_window=None)
    short, long = torch.arange(3, 13), torch.arange(40) % 100
    with torch.no_grad():
        alone = model(input_ids=short[None]).logits[0]
        rows = torch.nn.utils.rnn.pad_sequence([short, long[:32]], batch_first=True)
        beside_a_fitting_one = model(input_ids=rows).logits[0, :10]
        rows = torch.nn.utils.rnn.pad_sequence([short, long], batch_first=True)
        beside_a_longer_one = model(input_ids=rows).logits[0, :10]
    torch.testing.assert_close(beside_a_fitting_one, alone, atol=1e-5, rtol=0)
    assert (beside_a_longer_one - alone).abs().max() > 0.01


def test_positions_by_hand():
    assert positions_of(families.config_of("llama3")).most == 512
    assert positions_of(families.config_of("gpt2")).most == 512
    assert positions_of(AutoConfig.for_model("bloom")).most == sys.maxsize
    config = families.config_of("phi3", rope_parameters=LONG, original_max_position_embeddings=32)
    assert positions_of(config).most == 32 and "longrope" in positions_of(config).what


def test_a_run_that_could_outgrow_them_is_refused(small_models):
    from model_directories import load_tokenizer

    chat = Chat(load_tokenizer(small_models / "policy"))
    config = families.config_of(
        "phi3", vocab_size=len(chat.tokenizer), rope_parameters=LONG, original_max_position_embeddings=32
    )
    ppo, dpo = PpoConfig(), DpoConfig()
    for settings in (ppo, dpo):
        settings.data.max_prompt_tokens, settings.rollout.max_new_tokens = 20, 12
    dpo.dpo.max_length = 32
    policy.check_lengths(ppo, config, chat)
    inputs.check_lengths(dpo, config, chat)
    ppo.rollout.max_new_tokens, dpo.dpo.max_length = 13, 33
    with pytest.raises(UserError, match=r"^rollout\.max_new_tokens: .* 33 tokens, more than the model's 32 .*longrope"):
        policy.check_lengths(ppo, config, chat)
    with pytest.raises(UserError, match=r"^dpo\.max_length: 33 .* 32 positions before its longrope"):
        inputs.check_lengths(dpo, config, chat)


class Words:
    """As much of a tokenizer as a reward model needs to be given ids."""

    unk_token_id, pad_token_id = 0, None


@pytest.mark.parametrize("kind", ["phi3", "llama3", "gemma3"])
def test_a_reward_model_scores_a_sequence_beyond_the_original_length_by_itself(kind):
    """A score does not depend on who is scored with it: neither the long one's nor the short ones'."""
    ropes: dict = LONG
    if kind == "gemma3":
        ropes = {**LONG, "short_factor": [1.0] * 8, "long_factor": [8.0] * 8}
        ropes = {"full_attention": ropes, "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}
    more = {"original_max_position_embeddings": 32, "sliding_window": None} if kind == "phi3" else {}
    model = families.model_of(kind, rope_parameters=ropes, **more)
    assert alone_above(model.config) == 32
    head = torch.nn.Linear(model.config.hidden_size, 1, bias=False)
    torch.nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(0))
    reward = RewardModel(RewardNet(model.model, head), Words(), "sequence_classification", max_length=64)
    sequences = [[(7 * i + n) % 90 + 3 for i in range(n)] for n in (10, 40, 32, 12, 50, 33)]
    alone = [reward.score_ids([ids])[0] for ids in sequences]
    assert reward.score_ids(sequences) == pytest.approx(alone, abs=1e-4)
    groups = reward._groups(list(map(len, sequences)), 16384)
    assert groups[:3] == [[1], [4], [5]] and sorted(i for group in groups for i in group) == list(range(6))
    # which it would, in one pass: the numbers differ
    assert reward._forward(sequences[:2])[0].item() != pytest.approx(alone[0], abs=1e-3)


def test_other_ropes_go_together():
    assert alone_above(families.config_of("llama3")) == sys.maxsize
    assert alone_above(families.config_of("gpt2")) == sys.maxsize


def test_a_dynamic_rope_is_refused_beyond_its_positions():
    """Its frequencies stay those of the longest sequence so far: a score would depend on the passes before."""
    ropes = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    config = families.config_of("llama3", rope_parameters=ropes, max_position_embeddings=32)
    check_dynamic(config, 32, "reward.max_length")
    check_dynamic(families.config_of("llama3"), 10**6, "reward.max_length")
    with pytest.raises(
        UserError, match=r"^reward\.max_length: 33 is more than .* 32 positions.*dynamic.*lower it to 32"
    ):
        check_dynamic(config, 33, "reward.max_length")


def test_the_training_of_a_reward_model_is_refused_beyond_the_original_length(small_models, tmp_path):
    """As a policy's is: for a classifier and for a Starling, from their configurations alone."""
    import shutil

    from model_directories import load_tokenizer, source

    from starling_train.models.reward import classifier, start
    from starling_train.models.reward.source import RewardSource

    vocabulary = len(load_tokenizer(small_models / "policy"))
    for kind, ropes in (("phi3", LONG), ("llama3", LONG)):
        folder = tmp_path / kind
        shutil.copytree(small_models / "policy", folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
        more = {"original_max_position_embeddings": 32, "sliding_window": None} if kind == "phi3" else {}
        families.config_of(kind, vocab_size=vocabulary, rope_parameters=ropes, **more).save_pretrained(folder)
        opened = RewardSource("sequence_classification", source(folder), source(folder), "rm.tokenizer")
        readers = [classifier.read_config] + [start.read_config] * (kind == "llama3")
        for read in readers:
            read(opened, 32)
            with pytest.raises(UserError, match=r"^rm\.max_length: 33 .* 32 positions before its longrope"):
                read(opened, 33)
