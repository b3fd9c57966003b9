"""How the configuration reaches what it configures."""

import pytest
import torch
from model_directories import load_causal_lm, scan, source

from starling_train.config.ppo import PpoConfig
from starling_train.config.sections import FreezeConfig, RewardConfig, RolloutConfig
from starling_train.core.advantages import token_rewards
from starling_train.core.ppo import kl_estimate
from starling_train.core.running_moments import RunningMoments
from starling_train.models.actors import Actors
from starling_train.rollout.responses import Rollout
from starling_train.selection import scans
from starling_train.training.ppo import experience
from starling_train.training.ppo.experience import make_experience


def test_scores_are_centred_scaled_and_clipped_by_hand():
    moments = RunningMoments()
    moments.update([1.0, 3.0, 5.0])  # mean 3, sample deviation 2
    scores = torch.tensor([1.0, 4.0, 103.0])
    assert experience.normalise(scores, moments, RewardConfig(clip=10.0)).tolist() == [-1.0, 0.5, 10.0]
    assert experience.normalise(scores, moments, RewardConfig(clip=0.0)).tolist() == [-1.0, 0.5, 50.0]
    assert experience.normalise(scores, moments, RewardConfig(scale="none")).tolist() == [1.0, 4.0, 103.0]


def test_dropout_is_off_whatever_the_model_directory_says(tiny_mistral, tmp_path):
    model = tiny_mistral()
    model.config.attention_dropout = 0.5
    model.save_pretrained(tmp_path)
    loaded = load_causal_lm(tmp_path, dtype="float32").train()
    ids = torch.arange(20)[None]
    assert loaded.config.attention_dropout == 0.0
    assert torch.equal(loaded(ids).logits, loaded(ids).logits)


def test_the_temperature_of_the_rollout_is_that_of_the_scored_log_probs(tiny_mistral):
    """What `generate` samples from, token by token, is what `score_tokens` scores."""
    policy = tiny_mistral().eval()
    prompt = [5, 6, 7]
    torch.manual_seed(0)
    output = policy.generate(
        torch.tensor([prompt]), do_sample=True, temperature=0.7, top_k=0, max_new_tokens=8, pad_token_id=0,
        eos_token_id=96, return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    response = output.sequences[0, 3:].tolist()
    sampled = torch.stack([s[0].log_softmax(-1)[t] for s, t in zip(output.scores, response, strict=True)])
    actors = Actors(policy, "head", 0, RolloutConfig(temperature=0.7).temperature)
    rollout = Rollout([prompt], [response], [True])
    found = make_experience(actors, rollout, torch.zeros(1), PpoConfig().algorithm, 0.0)
    torch.testing.assert_close(found.logprobs[0], sampled, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_estimator_of_the_penalty_is_the_one_asked_for(tiny_mistral, estimator):
    actors = Actors(tiny_mistral(), "head", 0)
    with torch.no_grad():
        actors.reference.lm_head.weight.add_(0.3 * torch.randn_like(actors.reference.lm_head.weight))
    config = PpoConfig().algorithm
    config.kl.estimator = estimator
    rollout = Rollout([[1, 2]], [[3, 4, 5]], [True])
    found = make_experience(actors, rollout, torch.ones(1), config, 0.5)
    kl = kl_estimate(found.logprobs, found.reference, estimator)
    assert kl.abs().max() > 1e-4
    torch.testing.assert_close(found.total, token_rewards(torch.ones(1), kl, found.is_response, 0.5).sum(-1))


def test_a_scan_of_another_model_is_refused(tiny_mistral, tmp_path):
    from starling_train.config.fields import UserError
    from starling_train.selection import records

    tiny_mistral(layers=3).save_pretrained(tmp_path / "three")
    tiny_mistral(layers=2).save_pretrained(tmp_path / "two")
    records.write_records(scan(tmp_path / "two"), tmp_path / "scan.json")
    config = FreezeConfig(scan=str(tmp_path / "scan.json"))
    assert len(scans.scan_or_list(config, source(tmp_path / "two"), "cpu")) == 14
    with pytest.raises(UserError, match=r"freeze\.scan"):
        scans.scan_or_list(config, source(tmp_path / "three"), "cpu")


def test_a_resumed_run_uses_its_own_scan_again(tiny_mistral, tmp_path, monkeypatch):
    from starling_train.core import spectrum

    tiny_mistral(layers=2).save_pretrained(tmp_path / "model")
    run, config = tmp_path / "run", FreezeConfig()
    records = scans.scan_or_list(config, source(tmp_path / "model"), "cpu", run)
    assert not run.exists()  # nothing is written before all inputs are known to be right
    run.mkdir()
    scans.write_scan(records, run)
    monkeypatch.setattr(spectrum, "gram", None)  # any computation would fail
    assert scans.scan_or_list(config, source(tmp_path / "model"), "cpu", run) == records
    scans.write_scan(records, run)
    assert [path.name for path in run.iterdir()] == ["snr.json"]
