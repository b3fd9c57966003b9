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
from starling_train.models.families.positions import positions_of
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
