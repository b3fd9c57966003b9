"""The same command on real Nectar rows with the real Openchat tokenizer, and a small random-weight Mistral."""

import json

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def test_three_steps(openchat_models, small_run, data_dir, run_command, tmp_path):
    models = [f"{part}.path={openchat_models / name}" for part, name in (("model", "policy"), ("reward", "reward"))]
    done = run_command("ppo", *small_run, *models, f"data.path={data_dir / 'nectar'}")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert all(row["policy/ratio_first"] < 1e-4 for row in rows[1:])
    assert all(row["response/length_max"] <= 12 for row in rows[1:])
    assert (run / "report.html").is_file()

    trained = AutoModelForCausalLM.from_pretrained(run / "policy")
    base = AutoModelForCausalLM.from_pretrained(openchat_models / "policy")
    different = {
        n
        for (n, a), (_, b) in zip(trained.named_parameters(), base.named_parameters(), strict=True)
        if not torch.equal(a, b)
    }
    assert len(different) == 14  # two of four layers, of each of seven module types
    tokenizer = AutoTokenizer.from_pretrained(run / "policy")
    messages = [{"role": "user", "content": "Hello"}]
    card = [1, 420, 6316, 28781, 3198, 3123, 1247, 28747, 22557, 32000, 420, 6316, 28781, 3198, 3123, 21631, 28747]
    assert tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False) == card
