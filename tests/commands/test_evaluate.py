"""`evaluate`: figures that are known otherwise, what is done and what is repeated, wrong input, and its end."""

import json
import re
import signal
from pathlib import Path

import pytest
from fault_process import Started
from reward_checkpoints import SIZE, fresh_net, load, small_tokenizer
from reward_server import Scripted, Served
from transformers import LlamaConfig, LlamaForSequenceClassification

from starling_train import evaluate
from starling_train.data import preferences
from starling_train.evals import preference
from starling_train.models import causal_lm as loading
from starling_train.models.reward import write_starling_7b

ROOT = Path(evaluate.__file__).parents[1]
BOTH = "suites=[preference,function_calling]"
# by length: right, a tie, wrong (1 apart); right, right (1 apart) and right (2 apart)
PAIRS = [
    {"prompt": "hi", "chosen": "longer", "rejected": "long"},
    {"prompt": "hi", "chosen": "same", "rejected": "size"},
    {"prompt": "hi", "chosen": "no", "rejected": "wrong"},
    {"prompt": "hi", "answers": [{"answer": "a" * (4 - rank), "rank": rank} for rank in (1, 2, 3)]},
]


@pytest.fixture
def pairs(tmp_path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    return path


@pytest.fixture
def lengths():
    """A reward server whose score is the length of the answer."""
    with Scripted() as server:
        yield server


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs the command in this process, in an empty directory; gives exit code, stdout, stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", ["evaluate", "cluster.device=cpu", *arguments])
        kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
        code = 0
        try:
            evaluate.main()
        except SystemExit as stopped:
            code = stopped.code
        for number, handler in kept.items():
            signal.signal(number, handler)
        return code, *capsys.readouterr()

    return call


def at(server: Scripted) -> list[str]:
    return ["reward=server", f"reward.url=http://127.0.0.1:{server.server_port}", "reward.patience_s=0.2"]


def kinds(run_dir: Path) -> list[str]:
    """The files of a directory, those of journals without their digests and `.jsonl`."""
    return sorted(re.sub(r"-[0-9a-f]{12}\.jsonl$", "", path.name) for path in run_dir.iterdir())


def results(run_dir: Path) -> list[dict]:
    return json.loads((run_dir / "evaluation.json").read_text(), parse_constant=pytest.fail)["results"]


def test_the_toys_figures_are_the_ones_known_from_its_making(run_command, run, toy, tmp_path):
    asked = ["+recipe=toy", BOTH, f"preference.path={toy / 'nectar'}", "preference.rows=200"]  # the held-out rows
    done = run_command("evaluate", *asked)
    assert done.returncode == 0, done.stderr
    file = tmp_path / "runs" / "toy" / "evaluation.json"
    assert done.stdout.splitlines()[-2:] == [f"report: {file.parent / 'report.html'}", f"results: {file}"]
    assert kinds(file.parent) == ["evaluation.json", "function_calling.answers", "preference.scores", "report.html"]

    made = json.loads((toy / "toy.json").read_text())
    ranked, called = results(file.parent)
    accuracy = ranked["result"]["accuracy"]
    assert accuracy == pytest.approx(made["reward"]["pair_accuracy"], abs=1e-3) and accuracy > 0.8
    by_distance = ranked["result"]["by_distance"]
    assert [(part["distance"], part["pairs"]) for part in by_distance] == [(d, 200 * (7 - d)) for d in range(1, 7)]
    assert by_distance[-1]["accuracy"] > 0.95 > 0.75 > by_distance[0]["accuracy"]
    assert ranked["result"]["pairs"] == 4200 and ranked["identity"]["model"]["path"] == str(toy / "reward")
    assert 100 * called["result"]["accuracy"] == pytest.approx(made["policy"]["function_calling"], abs=1.0)
    assert called["result"]["cases"] == sum(part["cases"] for part in called["result"]["by_category"]) == 111
    assert called["identity"]["model"]["path"] == str(toy / "policy")
    assert re.search(rf"^preference +{100 * accuracy:.2f} % +4,200$", done.stdout, re.M)

    before = file.read_bytes()
    code, out, error = run(*asked)  # again: nothing to do
    assert (code, error) == (0, "") and out.count("done already") == 2 and file.read_bytes() == before

    code, out, error = run(*asked, "function_calling.cases=12")  # other settings: added
    assert (code, error) == (0, "") and out.count("done already") == 1
    assert [entry["identity"]["suite"] for entry in results(file.parent)] == ["preference"] + ["function_calling"] * 2
    assert results(file.parent)[2]["result"]["cases"] == 12 and results(file.parent)[:2] == [ranked, called]


def test_pairs_counted_by_hand_and_a_tie_is_half(run, pairs, lengths, tmp_path):
    code, _, error = run("suites=[preference,preference]", f"preference.path={pairs}", *at(lengths))
    assert (code, error) == (0, "")
    (entry,) = results(tmp_path / "runs" / "evaluate")
    assert entry["result"] == {
        "accuracy": 4.5 / 6,
        "pairs": 6,
        "by_distance": [
            {"distance": 1.0, "accuracy": 3.5 / 5, "pairs": 5},
            {"distance": 2.0, "accuracy": 1.0, "pairs": 1},
        ],
        "truncated_answers": 0,
        "truncated_prompts": 0,
    }
    assert entry["identity"]["model"]["url"] == f"http://127.0.0.1:{lengths.server_port}"
    asked = len(lengths.requests)
    assert "done already" in run("suites=[preference]", f"preference.path={pairs}", *at(lengths))[1]
    assert len(lengths.requests) == asked

    pairs.write_text(json.dumps(PAIRS[0]) + "\n")  # other data under the same name
    assert run("suites=[preference]", f"preference.path={pairs}", *at(lengths))[0] == 0
    assert [entry["result"]["pairs"] for entry in results(tmp_path / "runs" / "evaluate")] == [6, 1]


def test_a_served_model_and_a_classifier_are_as_good_as_in_process(run, pairs, tmp_path):
    write_starling_7b(fresh_net(), tmp_path / "reward", small_tokenizer())
    config = LlamaConfig(**SIZE, num_labels=1, pad_token_id=0)
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "classifier")
    small_tokenizer().save_pretrained(tmp_path / "classifier")
    local = [f"reward.path={tmp_path / 'reward'}", "reward.dtype=float32", "reward.max_length=400"]
    other = [*local[1:], "reward=sequence_classification", f"reward.path={tmp_path / 'classifier'}"]
    suite = ["suites=[preference]", f"preference.path={pairs}", "run_dir=out"]
    assert run(*suite, *local)[0] == 0 and run(*suite, *other)[0] == 0
    with Served(*local) as server:
        assert run(*suite, "reward=server", f"reward.url={server.url}")[0] == 0
    write_starling_7b(fresh_net(seed=1), tmp_path / "reward", small_tokenizer())  # another model in the same place
    assert run(*suite, *local)[0] == 0

    found = [entry["result"] for entry in results(tmp_path / "out")]
    comparisons = preferences.load(pairs)
    kinds = [("starling_7b", "reward"), ("sequence_classification", "classifier")]
    now, classifier = (preference.evaluate(comparisons, load(k, tmp_path / name).score).accuracy for k, name in kinds)
    assert found[0] == found[2] and [found[1]["accuracy"], found[3]["accuracy"]] == [classifier, now]


def test_prompts_that_the_reward_model_reads_without_their_beginning_are_told(run, tmp_path):
    write_starling_7b(fresh_net(), tmp_path / "reward", small_tokenizer())
    file = tmp_path / "long.jsonl"
    rows = [{"prompt": f"hello {i} " * (60 * (i % 2) + 1), "chosen": "a", "rejected": "b"} for i in range(4)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    local = [f"reward.path={tmp_path / 'reward'}", "reward.dtype=float32", "reward.max_length=100"]
    told = "4 conversations are longer than reward.max_length and lose their beginning\n"
    code, out, _ = run("suites=[preference]", f"preference.path={file}", "run_dir=out", *local)
    assert code == 0 and told in out
    with Served(*local) as server:
        asked = ["reward=server", f"reward.url={server.url}"]
        assert told in run("suites=[preference]", f"preference.path={file}", "run_dir=out", *asked)[1]
    for entry in results(tmp_path / "out"):
        counts = {key: value for key, value in entry["result"].items() if key.startswith("truncated")}
        assert counts == {"truncated_answers": 0, "truncated_prompts": 4}


def test_a_dry_run_loads_and_writes_nothing(run, pairs, small_models, monkeypatch, tmp_path):
    monkeypatch.setattr("starling_train.models.reward.model.load", pytest.fail)
    monkeypatch.setattr(loading, "load_causal_lm", pytest.fail)
    models = [f"model.path={small_models / 'policy'}", f"reward.path={small_models / 'reward'}"]
    code, out, error = run("suites=[preference]", f"preference.path={pairs}", *models, "dry_run=true")
    assert (code, error) == (0, "") and "would measure 6 pairs among 9 answers to 4 prompts" in out
    code, out, error = run("suites=[preference]", f"preference.path={pairs}", "dry_run=true", "reward=server",
                           "reward.url=http://127.0.0.1:1")  # fmt: skip
    assert (code, error) == (0, "") and "http://127.0.0.1:1 (server)" in out
    assert not (tmp_path / "runs").exists()


def test_scores_that_are_not_finite_prefer_nothing(run, pairs, tmp_path):
    net = fresh_net()
    net.v_head.weight.data[:] = float("nan")
    write_starling_7b(net, tmp_path / "reward", small_tokenizer())
    code, _, error = run("suites=[preference]", f"preference.path={pairs}", f"reward.path={tmp_path / 'reward'}")
    assert code == 2 and error.startswith("error: reward: 9 of 9 scores are not finite")
    assert not (tmp_path / "runs" / "evaluate" / "evaluation.json").exists()


@pytest.mark.parametrize("number,code", [(signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_a_signal_ends_it_and_what_is_done_is_kept(toy, pairs, tmp_path, number, code):
    with Scripted(delay_s=0.5) as server:
        arguments = ["+recipe=toy", *at(server), "run_dir=out",
                   "suites=[function_calling,preference]", "reward.connections=1", "function_calling.cases=6",
                   "reward.conversations_per_request=1", f"preference.path={pairs}"]  # fmt: skip
        process = Started("evaluate", arguments, tmp_path)
        assert process.wait_until(lambda: "\npreference:" in process.out()), process.error()
        process.send(number)
        assert process.wait(60) == code
    assert [entry["identity"]["suite"] for entry in results(tmp_path / "out")] == ["function_calling"]
    assert set(kinds(tmp_path / "out")) <= {"evaluation.json", "function_calling.answers", "preference.scores"}


def test_results_from_before_models_were_hashed_whole_are_kept_and_measured_again(run, pairs, lengths, tmp_path):
    asked = ["suites=[preference]", f"preference.path={pairs}", *at(lengths), "run_dir=out"]
    assert run(*asked)[0] == 0
    file = tmp_path / "out" / "evaluation.json"
    (entry,) = results(tmp_path / "out")
    older = {"identity": entry["identity"] | {"model": {"path": "/rm", "fingerprint": "ab"}}, "made": {}}
    older["result"] = entry["result"] | {"accuracy": 0.123}
    file.write_text(json.dumps({"results": [older]}))
    code, out, error = run(*asked)
    assert (code, error) == (0, "") and "done already" not in out
    assert results(tmp_path / "out") == [older, entry | {"made": results(tmp_path / "out")[1]["made"]}]
    assert "0.123" in (tmp_path / "out" / "report.html").read_text()


def test_a_byte_in_the_middle_of_the_weights_is_another_model(run, pairs, tmp_path):
    write_starling_7b(fresh_net(), tmp_path / "reward", small_tokenizer())
    local = [f"reward.path={tmp_path / 'reward'}", "reward.dtype=float32", "reward.max_length=400", "run_dir=out"]
    asked = ["suites=[preference]", f"preference.path={pairs}", *local]
    assert run(*asked)[0] == 0 and "done already" in run(*asked)[1]
    known = json.loads((tmp_path / "out" / "evaluation.json").read_text())["files"]
    assert list(known) == [str(tmp_path / "reward")]
    (weights,) = [*(tmp_path / "reward").glob("*.safetensors"), *(tmp_path / "reward").glob("*.bin")]
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    code, out, _ = run(*asked, "dry_run=true")
    assert code == 0 and "would measure" in out


def test_hashes_of_unchanged_files_are_not_made_again(run, pairs, tmp_path, monkeypatch):
    from starling_train.files import identity

    write_starling_7b(fresh_net(), tmp_path / "reward", small_tokenizer())
    local = [f"reward.path={tmp_path / 'reward'}", "reward.dtype=float32", "reward.max_length=400", "run_dir=out"]
    asked = ["suites=[preference]", f"preference.path={pairs}", *local]
    assert run(*asked)[0] == 0
    monkeypatch.setattr(identity, "sha256", lambda path: pytest.fail(f"{path} was read again"))
    assert "done already" in run(*asked)[1]
