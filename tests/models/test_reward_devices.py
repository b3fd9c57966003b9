"""`reward.device_map=auto`: the option reaches transformers, and what it says where there is no GPU."""

import pytest
import torch
from accelerate import dispatch_model
from reward_checkpoints import SIZE, conversations, fresh_net, load, small_tokenizer
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForSequenceClassification, LlamaModel

from starling_train.config.fields import UserError, check_values
from starling_train.config.sections import RewardConfig
from starling_train.models.reward import loading, write_starling_7b
from starling_train.models.reward.model import RewardModel
from starling_train.models.reward.source import RewardSource
from starling_train.rewards import directory
from starling_train.run.runtime import Runtime

KINDS = {"starling_7b": LlamaModel, "sequence_classification": AutoModelForSequenceClassification}


class Asked(Exception):
    """Raised in place of loading; carries the arguments."""


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    root = tmp_path_factory.mktemp("reward")
    write_starling_7b(fresh_net(), root / "starling_7b", small_tokenizer())
    classifier = LlamaForSequenceClassification(LlamaConfig(**SIZE, num_labels=1, pad_token_id=0))
    classifier.save_pretrained(root / "sequence_classification")
    small_tokenizer().save_pretrained(root / "sequence_classification")
    return root


@pytest.fixture
def arguments_of(directories, monkeypatch):
    """What `from_pretrained` is given for a reward section, on a machine with GPUs."""

    def call(kind: str, **settings) -> dict:
        def from_pretrained(*positional, **given):
            raise Asked(given)

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(KINDS[kind], "from_pretrained", from_pretrained)
        config = RewardConfig(kind=kind, path=str(directories / kind), **settings)
        with pytest.raises(Asked) as asked:
            directory.load(config, Runtime("cpu"))
        return asked.value.args[0]

    return call


@pytest.mark.parametrize("kind", KINDS)
def test_auto_reaches_from_pretrained(arguments_of, kind):
    assert arguments_of(kind, device_map="auto")["device_map"] == "auto"
    assert "device_map" not in arguments_of(kind)


def test_auto_goes_with_quantisation(arguments_of):
    given = arguments_of("starling_7b", device_map="auto", load_in="8bit")
    assert given["device_map"] == "auto" and given["quantization_config"].load_in_8bit
    assert arguments_of("starling_7b", load_in="8bit")["device_map"] == {"": "cpu"}


def test_auto_needs_a_gpu(directories, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = RewardConfig(path=str(directories / "starling_7b"), device_map="auto")
    with pytest.raises(UserError, match=r"^reward\.device_map: auto needs GPUs .* none is visible"):
        directory.load(config, Runtime("cpu"))


def test_no_other_map_is_taken():
    with pytest.raises(UserError, match=r"^reward\.device_map: 'balanced' .* null, auto"):
        check_values(RewardConfig(device_map="balanced"), "reward.")


@pytest.fixture
def on_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


def test_weights_given_as_tensors_take_a_map(directories, on_the_cpu):
    """Both Starling layouts are read by us and handed to `from_pretrained`; without a GPU `auto` means the CPU."""
    directory = directories / "starling_7b"
    config = RewardSource.open("starling_7b", directory).config
    options = {"dtype": torch.float32, "device_map": "auto"}
    mapped = RewardModel(
        loading.load_starling("starling_7b", directory, config, options), small_tokenizer(), "starling_7b"
    )
    plain = load("starling_7b", directory)
    assert mapped.score(conversations()) == pytest.approx(plain.score(conversations()), abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_transformer_in_two_places_scores_the_same(directories, kind, tmp_path):
    """The last layer on disk stands in for a second GPU: the network runs through accelerate's hooks."""
    model = load(kind, directories / kind)
    expected = model.score(conversations())
    places = {"embed_tokens": "cpu", "layers.0": "cpu", "layers.1": "disk", "norm": "cpu", "rotary_emb": "cpu"}
    model.net.transformer = dispatch_model(model.net.transformer, places, "cpu", offload_dir=tmp_path, force_hooks=True)
    assert next(model.net.transformer.layers[1].parameters()).is_meta
    assert model.score(conversations()) == pytest.approx(expected, abs=1e-6)
