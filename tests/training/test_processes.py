"""Several processes, real ones with gloo, against one: the same losses, less memory each, and runs that go on."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fault_process import together

SCRIPT = Path(__file__).parent / "processes.py"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run(
    out: Path,
    world: int,
    stage: int,
    critic: str,
    steps: int,
    dtype="float32",
    after=0,
    script: Path = SCRIPT,
    offload: str | None = None,
) -> dict:
    """Metrics of the steps and bytes of optimizer state by process; the state lies beside `out`.

    Stage 0 runs in forked processes, which have torch imported; DeepSpeed under torchrun, as users start it.
    """
    arguments = [*map(str, (stage, critic, steps, out, dtype, after)), *([offload] if offload else [])]
    if stage == 0:
        for process in together(script, arguments, out.parent, world):
            assert process.wait() == 0, process.error()[-3000:]
    else:
        torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", str(world), "--master_port", str(free_port())]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[2])}
        command = [sys.executable, *torchrun, str(script), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process, by critic; made when first asked for."""
    found: dict[str, dict] = {}

    def of(critic: str) -> dict:
        if critic not in found:
            found[critic] = run(tmp_path_factory.mktemp("alone") / f"{critic}.json", 1, 0, critic, 5)
        return found[critic]

    return of


def compare(found: list[dict], expected: list[dict]) -> None:
    for mine, plain in zip(found, expected, strict=True):
        assert mine.keys() == plain.keys()
        for key, value in plain.items():
            if key != "policy/ratio_first":  # rounding, and nothing else
                assert mine[key] == pytest.approx(value, abs=1e-5, rel=1e-5), key


def test_two_processes_take_the_steps_of_one(alone, tmp_path):
    """The first step is a critic's warm-up; seven sequences do not divide by two."""
    found = run(tmp_path / "two.json", 2, 0, "twin", 5)
    compare(found["metrics"], alone("twin")["metrics"])
    assert found["bytes"] == 2 * alone("twin")["bytes"]  # whole on each


@pytest.mark.parametrize("world,name", [(2, "rloo"), (3, "grpo")])
def test_groups_stay_whole_on_a_process_and_the_steps_are_those_of_one(alone, tmp_path, world, name):
    """Five prompts of two responses, of which two are without a score in one step, on two processes and on three."""
    found = run(tmp_path / "groups.json", world, 0, name, 3)
    compare(found["metrics"], alone(name)["metrics"][:3])


def torchrun(script: Path, timeout_s: float = 120) -> subprocess.CompletedProcess:
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port())]
    command = [sys.executable, *launcher, str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[2])}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout_s)


def written(script: str, tmp_path: Path) -> Path:
    (tmp_path / "script.py").write_text(script)
    return tmp_path / "script.py"


def test_the_others_wait_for_the_first_longer_than_for_a_lost_process(tmp_path):
    script = """
import sys, time
from starling_train.run.runtime import Runtime
runtime = Runtime("cpu", timeout_s=2)
with runtime.fails_together():
    made = runtime.on_first(lambda: time.sleep(5) or [1, 2])
    sys.stdout.write(f"rank {runtime.rank} {made} {runtime.sum([1.0])}\\n")
"""
    for rank, process in enumerate(together(written(script, tmp_path), [], tmp_path, 2)):
        assert process.wait() == 0, process.error()[-2000:]
        assert process.out() == f"rank {rank} [1, 2] [2.0]\n"


def test_what_the_first_refuses_all_refuse_and_one_without_memory_does_not_wait_for_the_others(tmp_path):
    script = """
import sys
from starling_train.config.fields import UserError
from starling_train.run.runtime import Runtime
runtime = Runtime("cpu", timeout_s=60)
def refuse():
    raise UserError("run_dir: is of another model")
with runtime.fails_together():
    try:
        runtime.on_first(refuse)
    except UserError as error:
        sys.stdout.write(f"rank {runtime.rank} {error}\\n")
        sys.stdout.flush()
    if not runtime.is_main:
        raise RuntimeError("NCCL error: unhandled cuda error. Last error: Cuda failure 2 'out of memory'")
    runtime.sum([1.0])
"""
    first, second = together(written(script, tmp_path), [], tmp_path, 2)
    assert (second.wait(), first.wait()) == (2, 1)
    assert [process.out() for process in (first, second)] == [
        f"rank {rank} run_dir: is of another model\n" for rank in (0, 1)
    ]
    assert second.error().startswith("error: rank 1: out of memory (NCCL error") and second.error().count("\n") == 1
    assert "error: rank 0: another process of the run is gone" in first.error()


def test_an_error_of_ours_is_not_taken_for_a_lost_process(tmp_path):
    """Under torchrun, the one such start among the tests that run on every commit."""
    script = """
from starling_train.run.runtime import Runtime
runtime = Runtime("cpu", timeout_s=5)
with runtime.fails_together():
    runtime.sum([1.0])
    raise RuntimeError("the connection of two layers timed out")  # words that a network's error has, too
"""
    done = torchrun(written(script, tmp_path))
    assert done.returncode != 0 and "another process of the run is gone" not in done.stderr
    assert 'raise RuntimeError("the connection' in done.stderr  # the traceback


@pytest.mark.processes
@pytest.mark.parametrize(
    "stage,critic",
    [
        (1, "twin"), (2, "head"), (2, "twin"), (3, "twin"), (2, "adapters"), (3, "adapters"), (1, "rloo"), (2, "grpo"),
        (3, "rloo"), (3, "grpo"),
    ],
)  # fmt: skip
def test_zero_takes_the_steps_of_one_process_and_keeps_half_of_the_state(alone, tmp_path, stage, critic):
    pytest.importorskip("deepspeed")
    found = run(tmp_path / "zero.json", 2, stage, critic, 5)
    compare(found["metrics"], alone(critic)["metrics"])
    whole = alone(critic)["bytes"][0] * 12 / 8  # DeepSpeed keeps a copy of the weights beside the two moments
    for mine in found["bytes"]:
        assert mine == pytest.approx(whole / 2, rel=0.01)


@pytest.mark.processes
def test_accelerate_starts_the_same_processes(alone, tmp_path):
    """Told to start several: on a machine without GPUs it would start one."""
    pytest.importorskip("deepspeed")
    out = tmp_path / "accelerate.json"
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1"]
    launch += ["--mixed_precision=no", "--dynamo_backend=no", f"--main_process_port={free_port()}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[2])}
    command = [sys.executable, *launch, str(SCRIPT), "2", "twin", "5", str(out), "float32"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(out.read_text())
    compare(found["metrics"], alone("twin")["metrics"])
    assert len(found["bytes"]) == 2


@pytest.mark.processes
def test_a_run_goes_on_with_another_number_of_processes_and_another_stage(alone, tmp_path):
    pytest.importorskip("deepspeed")
    out, metrics = tmp_path / "hop.json", []
    for world, stage, steps in ((2, 2, 2), (1, 0, 1), (2, 3, 1), (2, 1, 1)):
        metrics += run(out, world, stage, "twin", steps, after=len(metrics))["metrics"]
    compare(metrics, alone("twin")["metrics"])


@pytest.mark.processes
def test_the_stages_agree_in_bfloat16(tmp_path):
    """Master copies are float32 everywhere; a checkpoint of one stage has the names and types of another's."""
    pytest.importorskip("deepspeed")
    states = []
    for stage in (2, 3):
        run(tmp_path / f"{stage}.json", 2, stage, "twin", 3, "bfloat16")
        states.append(torch.load(tmp_path / f"{stage}.state", weights_only=True))
    run(tmp_path / "0.json", 1, 0, "twin", 3, "bfloat16")
    plain = torch.load(tmp_path / "0.state", weights_only=True)
    for part in ("trainable", "optimizer"):
        shapes = [{n: (t.shape, t.dtype) for n, t in state[part].items()} for state in (*states, plain)]
        assert shapes[0] == shapes[1] == shapes[2]
        for name, tensor in states[0][part].items():
            torch.testing.assert_close(
                tensor, states[1][part][name], atol=1e-6, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
            )


def same_state(one: Path, other: Path) -> None:
    """To the bit."""
    states = [torch.load(path.with_suffix(".state"), weights_only=True) for path in (one, other)]
    for part in ("trainable", "optimizer"):
        assert states[0][part].keys() == states[1][part].keys()
        for name, tensor in states[0][part].items():
            assert torch.equal(tensor, states[1][part][name]), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_steps_in_host_memory_are_those_on_the_device(tmp_path, dtype):
    """To the bit, whichever part of the run had the state where."""
    plain, elsewhere = tmp_path / "plain.json", tmp_path / "elsewhere.json"
    straight = run(plain, 2, 0, "twin", 4, dtype)["metrics"]
    steps = run(elsewhere, 2, 0, "twin", 2, dtype, offload="optimizer")["metrics"]
    steps += run(elsewhere, 2, 0, "twin", 1, dtype, after=2)["metrics"]
    steps += run(elsewhere, 2, 0, "twin", 1, dtype, after=3, offload="optimizer")["metrics"]
    assert repr(steps) == repr(straight)  # nan among them
    same_state(plain, elsewhere)


@pytest.mark.processes
@pytest.mark.parametrize("stage,dtype", [(2, "float32"), (2, "bfloat16"), (3, "float32")])
def test_shards_in_host_memory_take_the_same_steps(tmp_path, stage, dtype):
    """To the bit up to stage 2; at stage 3 DeepSpeed adds the squares for the norm in another order."""
    pytest.importorskip("deepspeed")
    plain, elsewhere = tmp_path / "plain.json", tmp_path / "elsewhere.json"
    straight = run(plain, 2, stage, "twin", 3, dtype)["metrics"]
    steps = run(elsewhere, 2, stage, "twin", 2, dtype, offload="optimizer")["metrics"]
    steps += run(elsewhere, 2, stage, "twin", 1, dtype, after=2)["metrics"]
    if stage == 3:
        compare([{k: v for k, v in row.items() if v == v} for row in steps],
                [{k: v for k, v in row.items() if v == v} for row in straight])  # fmt: skip
        return
    assert repr(steps) == repr(straight)
    same_state(plain, elsewhere)
