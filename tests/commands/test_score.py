"""`score`: a line out for every line in, errors by line number, and resuming after a kill."""

import json
import signal
from pathlib import Path

import pytest
from fault_process import Started
from reward_checkpoints import MAX_LENGTH, conversations, fresh_net, load, small_tokenizer

from starling_train import score
from starling_train.models.reward import write_starling_7b


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("reward")
    write_starling_7b(fresh_net(), path, small_tokenizer())
    return path


@pytest.fixture(scope="module")
def model(directory):
    return load("starling_7b", directory)


@pytest.fixture
def arguments(directory, tmp_path):
    return [
        f"reward.path={directory}", "reward.dtype=float32", f"reward.max_length={MAX_LENGTH}", "cluster.device=cpu",
        f"input={tmp_path / 'in.jsonl'}", f"output={tmp_path / 'out' / 'scores.jsonl'}", "chunk=8",
    ]  # fmt: skip


@pytest.fixture
def run(arguments, monkeypatch, capsys):
    """Runs the command in this process; gives exit code, stdout, stderr."""

    def call(*changes: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["score", *arguments, *changes])
        code = 0
        try:
            score.main()
        except SystemExit as stopped:
            code = stopped.code
        return code, *capsys.readouterr()

    return call


def talks(count: int, seed: int = 1) -> list[list[dict]]:
    """Conversations whose answers are not blank."""
    return [messages for messages in conversations(2 * count, seed) if messages[-1]["content"].strip()][:count]


def write(path: Path, asked: list, mode: str = "w") -> None:
    with path.open(mode) as file:
        file.writelines(json.dumps(row) + "\n" for row in asked)


def rows(tmp_path: Path) -> list[dict]:
    return [json.loads(line) for line in (tmp_path / "out" / "scores.jsonl").read_text().splitlines()]


def test_conversations_that_lose_their_beginning_are_counted_prompts_too(run, tmp_path):
    """Three are too long: one in its answer, one in an earlier turn, one in its only prompt."""
    long = "hello " * 200
    asked = [[["user", "hi"], ["assistant", "hello"]], [["user", "hi"], ["assistant", long]],
             [["user", long], ["assistant", "hi"], ["user", "hi"], ["assistant", "hello"]],
             [["user", long], ["assistant", "hello"]]]  # fmt: skip
    write(tmp_path / "in.jsonl", [[{"role": role, "content": text} for role, text in talk] for talk in asked])
    code, out, error = run()
    assert (code, error) == (0, "") and len(rows(tmp_path)) == 4
    says = "3 conversations are longer than reward.max_length and lose their beginning, 1 of them that of their answer"
    assert says in out.splitlines()


def test_one_score_a_line_in_order(run, model, tmp_path):
    asked = talks(30)
    forms = [{"messages": m} if i % 3 else m for i, m in enumerate(asked)]
    write(tmp_path / "in.jsonl", [*forms, {"prompt": "hi", "response": "hello"}])
    asked.append([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}])
    code, out, error = run()
    assert (code, error) == (0, "")
    assert [row["line"] for row in rows(tmp_path)] == list(range(1, 32))
    assert [row["score"] for row in rows(tmp_path)] == pytest.approx(model.score(asked), abs=1e-5)
    lines = out.splitlines()
    assert lines[0].endswith("8 scored, 0 wrong") and lines[3].startswith("100.0 %")
    assert lines[-1] == f"31 scores: {tmp_path / 'out' / 'scores.jsonl'}"

    before = (tmp_path / "out" / "scores.jsonl").stat().st_mtime_ns
    code, out, error = run()  # again: nothing to do
    assert (code, error) == (0, "") and "31 lines" in out and "done already" in out
    assert (tmp_path / "out" / "scores.jsonl").stat().st_mtime_ns == before


def test_wrong_lines_are_named_and_the_others_scored(run, model, tmp_path):
    good = talks(2)
    lines = [
        json.dumps(good[0]).encode(),
        b"not json",
        b'{"prompt": "caf\xe9", "response": "x"}',
        b"",
        b'{"prompt": "hi", "response": " "}',
        b'[{"role": "user", "content": "hi"}]',
        b"[" * 50_000,
        json.dumps(good[1]).encode(),
    ]
    (tmp_path / "in.jsonl").write_bytes(b"\n".join(lines))  # and no end of the last line
    code, _, error = run()
    assert code == 2
    got = rows(tmp_path)
    assert [row["line"] for row in got] == [1, 2, 3, 5, 6, 7, 8]
    assert [got[0]["score"], got[-1]["score"]] == pytest.approx(model.score(good), abs=1e-5)
    says = ["not JSON", "not UTF-8", "the answer is empty", "ends with the user", "not JSON"]
    printed = error.splitlines()
    for row, line, what in zip(got[1:-1], printed, says, strict=False):
        assert what in row["error"] and line == f"{tmp_path / 'in.jsonl'}:{row['line']}: {row['error']}"
    assert printed[-1].startswith("error: input: 5 lines of") and "line 2 first" in printed[-1]
    assert len(printed) == 6
    assert run()[0] == 2  # a second start says so too


def test_added_lines_are_scored_and_changed_ones_refused(run, model, tmp_path):
    asked = talks(12)
    write(tmp_path / "in.jsonl", asked[:9])
    assert run()[0] == 0
    first = rows(tmp_path)
    write(tmp_path / "in.jsonl", asked[9:], "a")
    assert run()[0] == 0
    assert rows(tmp_path)[:9] == first
    assert [row["score"] for row in rows(tmp_path)] == pytest.approx(model.score(asked), abs=1e-5)

    write(tmp_path / "in.jsonl", [asked[1], asked[0], *asked[2:]])
    code, _, error = run()
    assert code == 2 and error.startswith("error: input: ") and "was changed" in error and error.count("\n") == 1
    assert len(rows(tmp_path)) == 12

    (tmp_path / "out" / "scores.jsonl").unlink()  # as the message says
    assert run()[0] == 0 and len(rows(tmp_path)) == 12


def test_a_last_line_that_was_written_on_is_another_line(run, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"prompt": "hi", "response": "a"}')
    assert run()[0] == 0
    with (tmp_path / "in.jsonl").open("a") as file:
        file.write("x")
    assert "was changed" in run()[2]


@pytest.mark.parametrize(
    "changes,says",
    [
        (["reward.position=card"], "reward.position"),
        (["reward.max_length=100"], "reward.max_length"),
    ],
)
def test_scores_of_two_models_are_not_mixed(run, tmp_path, changes, says):
    write(tmp_path / "in.jsonl", talks(2))
    assert run()[0] == 0
    code, _, error = run(*changes)
    assert code == 2 and error.startswith("error: output: ") and says in error


def test_a_file_of_somebody_else_is_left_alone(run, tmp_path):
    write(tmp_path / "in.jsonl", talks(2))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "scores.jsonl").write_text("mine\n")
    code, _, error = run()
    assert code == 2 and "did not write it" in error
    assert (tmp_path / "out" / "scores.jsonl").read_text() == "mine\n"


def test_an_empty_file_has_no_scores(run, tmp_path):
    (tmp_path / "in.jsonl").write_bytes(b"\n")
    assert run()[0] == 0 and rows(tmp_path) == []
    assert run()[0] == 0


def test_a_killed_job_goes_on_where_it_was(run, arguments, model, tmp_path):
    asked = talks(400, seed=3)
    write(tmp_path / "in.jsonl", asked)
    process = Started("score", arguments, tmp_path)
    assert process.wait_until(lambda: process.out().count("\n") >= 5), process.error()  # five chunks are safe
    process.send(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    output = tmp_path / "out" / "scores.jsonl"
    done = json.loads(output.with_name("scores.jsonl.progress.json").read_text())["lines"]
    assert 40 <= done < 400
    with output.open("a") as file:
        file.write('{"line": 41, "sco')  # as a kill in the middle of a write leaves it
    code, out, _ = run()
    assert code == 0 and f"{done} lines" in out
    assert [row["line"] for row in rows(tmp_path)] == list(range(1, 401))
    assert [row["score"] for row in rows(tmp_path)] == pytest.approx(model.score(asked), abs=1e-5)
