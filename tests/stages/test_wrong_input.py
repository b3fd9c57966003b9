"""What a user can get wrong: one line that names the key or file and the remedy, exit code 2, nothing written."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoTokenizer

from starling_train import ppo


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"What is {i} and {i}?"}) + "\n" for i in range(20)))
    return path


@pytest.fixture
def refused(small_run, prompts, tmp_path, monkeypatch, capsys):
    """Runs ppo with the arguments; gives the one line that it must end with."""

    def run(*arguments: str) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", ["ppo", *small_run, f"data.path={prompts}", *arguments])
        with pytest.raises(SystemExit) as stopped:
            ppo.main()
        assert stopped.value.code == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: "), lines
        assert not (tmp_path / "run").exists() and not (tmp_path / "runs").exists()
        return lines[0]

    return run


def test_missing_model_directory(refused, tmp_path):
    assert "model.path" in refused(f"model.path={tmp_path / 'nowhere'}")


def test_model_directory_without_config(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    line = refused(f"model.path={tmp_path / 'empty'}")
    assert "model.path" in line and "config.json" in line


def test_a_hub_id_that_cannot_be_had(refused):
    line = refused("model.path=nobody/no-such-model")
    assert "model.path" in line and "nobody/no-such-model" in line


def test_tokenizer_without_the_end_of_turn_token(refused, small_models, tmp_path):
    shutil.copytree(small_models / "policy", tmp_path / "policy")
    tokenizer = AutoTokenizer.from_pretrained(small_models / "policy")
    content = (tmp_path / "policy" / "tokenizer.json").read_text().replace("<|end_of_turn|>", "<|something|>")
    (tmp_path / "policy" / "tokenizer.json").write_text(content)
    content = (tmp_path / "policy" / "tokenizer_config.json").read_text().replace("<|end_of_turn|>", "<|something|>")
    (tmp_path / "policy" / "tokenizer_config.json").write_text(content)
    assert tokenizer.convert_tokens_to_ids("<|end_of_turn|>") == 32000  # the original has it
    line = refused(f"model.path={tmp_path / 'policy'}")
    assert "model.path" in line and "<|end_of_turn|>" in line


def test_reward_checkpoint_without_v_head(refused, small_models, tmp_path):
    shutil.copytree(small_models / "reward", tmp_path / "reward")
    file = tmp_path / "reward" / "pytorch_model.bin"
    tensors = torch.load(file, weights_only=True)
    del tensors["v_head.weight"]
    torch.save(tensors, file)
    assert "v_head" in refused(f"reward.path={tmp_path / 'reward'}")


def test_weights_that_lack_a_tensor(refused, small_models, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(small_models / "policy", tmp_path / "policy")
    file = tmp_path / "policy" / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.norm.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    line = refused(f"model.path={tmp_path / 'policy'}")
    assert "model.path" in line and "model.norm.weight" in line


def test_nectar_file_with_missing_columns(refused, tmp_path):
    pq.write_table(pa.table({"promt": ["\n\nHuman: Hi\n\nAssistant: "]}), tmp_path / "bad.parquet")
    line = refused(f"data.path={tmp_path / 'bad.parquet'}")
    assert "bad.parquet" in line and "prompt" in line


def test_missing_data(refused, tmp_path):
    line = refused(f"data.path={tmp_path / 'nothing.parquet'}")
    assert "data.path" in line or "nothing.parquet" in line


def test_no_usable_prompt_left_after_filters(refused, prompts):
    line = refused(f"data.exclude=[{prompts}]")
    assert str(prompts) in line and "data.exclude" in line


def test_every_prompt_longer_than_the_limit(refused):
    line = refused("data.max_prompt_tokens=5")
    assert "data.max_prompt_tokens" in line and "raise it" in line


def test_prompt_and_response_longer_than_the_model_allows(refused):
    line = refused("data.max_prompt_tokens=200000")
    assert "rollout.max_new_tokens" in line and "positions" in line


def test_too_few_prompts_for_the_held_out_part(refused):
    assert "data.eval_prompts" in refused("data.eval_prompts=50")


@pytest.mark.parametrize("percent", ["-1", "101", "0"])
def test_percent_outside_0_to_100(refused, percent):
    assert "freeze.top_percent" in refused(f"freeze.top_percent={percent}")


def test_a_percentage_that_selects_nothing(refused):
    line = refused("freeze.top_percent=10")  # of four layers: none of any type
    assert "freeze.top_percent" in line


def test_a_scan_that_is_not_there(refused):
    assert "freeze.scan" in refused("freeze.scan=nowhere.json")


def test_a_function_that_cannot_be_imported(refused):
    line = refused("+evaluation.functions.gold=no.such.module:f")
    assert "evaluation.functions.gold" in line


def test_function_calling_files_that_are_not_there(refused, tmp_path):
    line = refused("evaluation.suites=[function_calling]", f"evaluation.function_calling.path={tmp_path}")
    assert "BFCL" in line


def test_several_processes(refused, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "WORLD_SIZE" in refused()


def test_cuda_where_there_is_none(refused):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert "cluster.device" in refused("cluster.device=cuda")
