"""`laser` killed or stopped at any moment: no try is made twice, and the same model comes out, bit for bit."""

import random
import shutil
import signal

import pytest
from fault_jobs import RUNS
from laser_runs import MARGIN, MATRICES, check_same, finish, logged, start


@pytest.fixture(scope="module")
def straight(toy, tmp_path_factory):
    """The run that nothing disturbed."""
    return finish(tmp_path_factory.mktemp("straight"), *MARGIN)


def disturbed(folder, straight, seed: int) -> None:
    """Kill or stop one to three starts at a try that the seed chooses, then let it end."""
    chance = random.Random(seed)
    for _ in range(chance.randint(1, 3)):
        number = chance.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1))
        process = start(folder, *MARGIN)
        wanted = chance.randint(0, MATRICES)
        process.wait_until(lambda process=process: "held out" in process.out())  # it has begun, and heeds signals
        process.wait_until(lambda run=process.run, wanted=wanted: logged(run) >= wanted)
        process.send(number)
        code = process.wait()
        if number == signal.SIGKILL:
            assert code in (-number, 0), process.error()
        else:
            ended = (process.run / "report.html").exists()  # a signal after that ends Python, not the run
            assert code in (128 + number, 0) or (ended and code == -number), (code, process.error())
            assert process.error() == "" and not list(process.run.rglob(".*"))
            assert ended or "which are kept; run the same command to go on" in process.out()
    check_same(finish(folder, *MARGIN), straight)


@pytest.mark.parametrize("seed", [4])
def test_a_disturbed_run_comes_out_the_same(straight, tmp_path, seed):
    disturbed(tmp_path, straight, seed)


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(100, 100 + RUNS))
def test_every_disturbed_run_comes_out_the_same(straight, tmp_path, seed):
    disturbed(tmp_path, straight, seed)


def test_a_run_killed_before_its_end_goes_on(straight, tmp_path):
    """As if killed between the files that are written at the end."""
    for gone in (["report.html"], ["summary.json", "report.html", "model", "start.json"]):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(straight, tmp_path / "run")
        for name in gone:
            path = tmp_path / "run" / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        check_same(finish(tmp_path, *MARGIN), straight)
