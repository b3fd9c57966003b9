"""`dry_run=true` of the real recipe, from config.json and tokenizer alone."""

import json
import re

import openchat_tokenizer
import pytest

from starling_train import ppo
from starling_train.data import openchat

OPENCHAT = {
    "architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5, "sliding_window": 4096, "max_position_embeddings": 8192, "vocab_size": 32002,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 32000,
}  # fmt: skip


@pytest.fixture(scope="module")
def openchat_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("openchat")
    openchat.save_tokenizer(openchat_tokenizer.build(), directory)
    (directory / "config.json").write_text(json.dumps(OPENCHAT))
    return directory


@pytest.fixture
def dry_run(openchat_dir, monkeypatch, capsys, tmp_path):
    def run(*arguments: str) -> str:
        monkeypatch.chdir(tmp_path)
        argv = ["ppo", "+recipe=small", "dry_run=true", f"model.path={openchat_dir}", *arguments]
        monkeypatch.setattr("sys.argv", argv)
        ppo.main()
        assert list(tmp_path.iterdir()) == []  # nothing is written
        return capsys.readouterr().out

    return run


def gigabytes(text: str, part: str) -> float:
    return float(re.search(rf"^{re.escape(part)}\s+([\d.]+) GB$", text, re.M)[1])


def test_small_says_what_trains_on_what_and_the_memory_by_part(dry_run):
    text = dry_run()
    # 25 % of each type of Mistral-7B: 1.745 B parameters, 24 % (facts about the published scan)
    assert "1,744,830,464" in text and "24.1%" in text and re.search(r"down_proj +8 of +32 ", text)
    assert "berkeley-nest/Nectar" in text and "Starling-RM-7B-alpha" in text
    assert gigabytes(text, "policy weights") == pytest.approx(7.24175 * 2, abs=0.01)
    assert gigabytes(text, "reference: own copies of what trains") == pytest.approx(1.74483 * 2, abs=0.01)
    assert gigabytes(text, "reward model") == pytest.approx(6.6073 * 2, abs=0.01)
    held = [float(x) for x in re.findall(r"^(?!peak|during).*?([\d.]+) GB$", text, re.M)]
    phases = [
        [float(x) for x in re.findall(rf"^during {name}: .*?([\d.]+) GB$", text, re.M)]
        for name in ("rollout", "scoring", "update", "step")
    ]
    assert gigabytes(text, "peak") == pytest.approx(sum(held) + max(map(sum, phases)), abs=0.05)
    assert gigabytes(text, "peak") < 80


def test_memory_follows_the_settings(dry_run):
    shared, twin = dry_run(), dry_run("algorithm.critic=twin")
    assert gigabytes(twin, "critic (twin)") - gigabytes(shared, "critic (head)") == pytest.approx(1.74483 * 2, abs=0.01)
    everything = dry_run("freeze=none")
    assert "7,241,748,480" in everything
    # the value head's are float32
    assert gigabytes(everything, "during step: gradients") == pytest.approx(2 * 7.24175 + 4 * 0.03357, abs=0.01)
    large = dry_run("reward=starling_34b")
    assert gigabytes(large, "reward model") == pytest.approx(2 * 33.93, abs=0.1)
    packed = "during rollout: weights packed for products, at most"  # on a CPU alone
    assert packed not in shared
    assert gigabytes(dry_run("cluster.device=cpu"), packed) == pytest.approx(2 * (7.24175 - 0.13108), abs=0.01)


def test_last_layers_names_exactly_those(dry_run):
    text = dry_run("freeze=last_layers")
    assert "the last 4 layers" in text and re.search(r"down_proj +4 of +32 ", text)


def test_a_scan_that_is_there_is_used(dry_run, data_dir):
    text = dry_run(f"freeze.scan={data_dir / 'snr' / 'snr_results_mistralai-Mistral-7B-v0.1.json'}")
    assert "1,744,830,464" in text and "the SNR scan decides" not in text


def test_local_prompts_are_read_and_counted(dry_run, data_dir):
    assert "held out" in dry_run(f"data.path={data_dir / 'nectar'}")
