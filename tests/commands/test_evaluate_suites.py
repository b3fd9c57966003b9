"""The suites of `evaluate` on the toy: numbers known otherwise, and a kill in the middle that costs nothing twice."""

import dataclasses
import json
import math
import re
import signal
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from fault_process import Started
from model_directories import load_tokenizer
from reward_checkpoints import conversations
from reward_server import Scripted
from served_model import ServedModel
from transformers import AutoModelForCausalLM

from starling_train import evaluate
from starling_train.data.chat import Chat
from starling_train.evals import subjects, suite
from starling_train.evals.instructions import is_followed, load
from starling_train.evals.lm_eval import sampling


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs the command in this process, in an empty directory; gives its output, which must be that of success."""

    def call(*arguments: str) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", ["evaluate", "+recipe=toy", "run_dir=out", *arguments])
        kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
        evaluate.main()
        for number, handler in kept.items():
            signal.signal(number, handler)
        out, error = capsys.readouterr()
        assert error == ""
        return out

    return call


@pytest.fixture
def generated(monkeypatch) -> list[int]:
    """How many answers each call of the rollout engine was asked for."""
    counts: list[int] = []
    generate = subjects.generate

    def counted(policy, chat, prompts, *rest, **more):
        counts.append(len(prompts))
        return generate(policy, chat, prompts, *rest, **more)

    monkeypatch.setattr(subjects, "generate", counted)
    return counts


def entries(out: Path) -> list[dict]:
    return json.loads((out / "evaluation.json").read_text(), parse_constant=pytest.fail)["results"]


def rows(out: Path, kind: str) -> dict[str, dict]:
    (path,) = out.glob(f"{kind}-*.jsonl")
    found = [json.loads(line) for line in path.read_bytes().splitlines()[1:]]
    assert len({row["id"] for row in found}) == len(found)
    return {row.pop("id"): row for row in found}


def flat(values: dict, prefix: str = "") -> dict[str, float]:
    parts = [flat(v, f"{prefix}{k}.") if isinstance(v, dict) else {f"{prefix}{k}": v} for k, v in values.items()]
    return {key: value for part in parts for key, value in part.items()}


def cut(out: Path, kind: str, keep: int) -> None:
    """As a kill leaves it: some rows, half of the next, and no result."""
    (path,) = out.glob(f"{kind}-*.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[: 1 + keep]) + lines[1 + keep][:9])
    (out / "evaluation.json").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def shifted(toy, tmp_path_factory) -> Path:
    """The toy's policy with another head."""
    directory = tmp_path_factory.mktemp("shifted")
    model = AutoModelForCausalLM.from_pretrained(toy / "policy")
    torch.manual_seed(0)
    model.lm_head.weight.data += 0.02 * torch.randn_like(model.lm_head.weight)
    model.save_pretrained(directory)
    load_tokenizer(toy / "policy").save_pretrained(directory)
    return directory


REWARD = ["suites=[reward]", "reward_suite.rows=24"]


def test_reward_is_that_of_its_own_answers_and_resumes_to_the_same(run, toy, shifted, tmp_path, generated):
    out = tmp_path / "out"
    asked = [*REWARD, f"reward_suite.base={shifted}"]
    said = run(*asked)
    (entry,) = entries(out)
    result, answers, scores = entry["result"], rows(out, "reward.answers"), rows(out, "reward.scores")
    assert generated == [24] and len(answers) == len(scores) == result["answers"] == 24

    values = sorted(row["score"] for row in scores.values())
    mean = math.fsum(values) / 24
    assert result["score"]["mean"] == pytest.approx(mean)
    assert result["score"]["std"] == pytest.approx(math.sqrt(math.fsum((v - mean) ** 2 for v in values) / 24))
    quantiles = result["score"]["quantiles"]
    assert (quantiles["0"], quantiles["1"]) == (values[0], values[-1])
    assert quantiles["0.5"] == pytest.approx((values[11] + values[12]) / 2)
    assert result["length"]["mean"] == sum(len(row["ids"]) for row in answers.values()) / 24
    assert result["ended"] == sum(row["ended"] for row in answers.values()) / 24
    assert result["kl"]["mean"] == pytest.approx(kl_by_hand(toy, shifted, answers), rel=1e-4)
    assert result["kl"]["mean"] > 0.01
    assert re.search(rf"^reward mean score +{mean:.4g} +24$", said, re.M)

    cut(out, "reward.answers", 10)
    cut(out, "reward.scores", 3)
    run(*asked)
    assert generated == [24, 14] and flat(entries(out)[0]["result"]) == pytest.approx(flat(result))
    assert rows(out, "reward.answers") == answers
    run(*REWARD)  # without a base: the same answers and scores
    assert generated == [24, 14] and entries(out)[1]["result"] == {**entries(out)[0]["result"], "kl": None}


def kl_by_hand(toy: Path, base: Path, answers: dict[str, dict]) -> float:
    """With transformers' own forward passes, an answer at a time."""
    from starling_train.config.evaluate import EvaluateConfig
    from starling_train.training.ppo.inputs import load_data

    tokenizer = load_tokenizer(toy / "policy")
    config = EvaluateConfig()
    config.data.path, config.data.max_prompt_tokens, config.data.eval_prompts = str(toy / "nectar"), 128, 128
    prompts = load_data(config, Chat(tokenizer)).held_out
    sums = []
    models = [AutoModelForCausalLM.from_pretrained(place) for place in (toy / "policy", base)]
    for key, row in answers.items():
        ids = torch.tensor([prompts[int(key)].ids + row["ids"]])
        first = len(prompts[int(key)].ids)
        with torch.no_grad():
            logprobs = [model(ids).logits[0, first - 1 : -1].log_softmax(-1) for model in models]
        here, there = (p.gather(-1, ids[0, first:, None]).sum() for p in logprobs)
        sums.append(float(here - there))
    return math.fsum(sums) / len(sums)


def test_reward_on_prompts_of_a_file(run, tmp_path, generated):
    lines = [json.dumps({"prompt": f"What is {word}?"}) for word in ("iron", "bread", "a tiger")]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    run("suites=[reward]", "reward_suite.path=prompts.jsonl", "reward_suite.rows=2")
    assert generated == [2] and entries(tmp_path / "out")[0]["result"]["answers"] == 2


def test_function_calling_asks_only_what_it_has_no_answer_to(run, tmp_path, generated):
    asked, out = ["suites=[function_calling]", "function_calling.cases=20"], tmp_path / "out"
    run(*asked)
    answers, (entry,) = rows(out, "function_calling.answers"), entries(out)
    cut(out, "function_calling.answers", 13)
    said = run(*asked)
    assert generated == [20, 7] and "13 of 20 answers are there from an earlier start" in said
    assert rows(out, "function_calling.answers") == answers and entries(out)[0]["result"] == entry["result"]


def test_instructions_are_asked_greedily_and_counted_by_kind(run, tmp_path, generated):
    told = run("suites=[instructions]", "instructions.prompts=24", "instructions.max_new_tokens=8")
    assert generated == [24] and "instructions: 24 prompts with" in told and "  upper_case" in told
    (entry,), answers = entries(tmp_path / "out"), rows(tmp_path / "out", "instructions.answers")
    followed = [is_followed(one.kind, one.argument, answers[one.id]["response"]) for one in load(24)]
    assert entry["result"]["accuracy"] == sum(followed) / 24 and len(entry["result"]["by_kind"]) == 12


def test_preference_scores_only_what_has_no_score(run, toy, tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "ANSWERS_AT_A_TIME", 16)
    asked = ["suites=[preference]", f"preference.path={toy / 'nectar'}", "preference.rows=10"]
    run(*asked)
    (entry,), out = entries(tmp_path / "out"), tmp_path / "out"
    scores = rows(out, "preference.scores")
    cut(out, "preference.scores", 33)
    assert "33 of 70 answers scored are there" in run(*asked)
    again = rows(out, "preference.scores")
    assert list(again) == list(scores) and entries(out)[0]["result"] == entry["result"]
    assert all(row["score"] == pytest.approx(scores[key]["score"]) for key, row in again.items())


def test_perplexity_of_a_text_and_of_its_beginning(run, toy, tmp_path):
    text = " ".join(message[-1]["content"] for message in conversations(12))
    (tmp_path / "text.txt").write_text(text)
    asked = ["suites=[perplexity]", "perplexity.path=text.txt", "perplexity.window=64"]
    run(*asked)
    told = run(*asked, "perplexity.tokens=100", "perplexity.texts={python:'stdlib:heapq.py',own:text.txt}")
    assert "300 tokens in 6 windows of" in told and "  python" in told
    whole, start = (entry["result"] for entry in entries(tmp_path / "out"))
    tokenizer = load_tokenizer(toy / "policy")
    model = AutoModelForCausalLM.from_pretrained(toy / "policy")
    ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False).input_ids]
    assert whole["tokens"] == len(ids) - 1 and start["tokens"] == 100
    assert start["nats"] == pytest.approx(nats(model, ids[:101], 64), rel=1e-5)
    python, own = start["texts"]
    assert (python["name"], python["tokens"]) == ("python", 100) and own["nats"] == start["nats"] != python["nats"]
    assert whole["nats"] == pytest.approx(nats(model, ids, 64), rel=1e-5)
    assert whole["perplexity"] == pytest.approx(math.exp(whole["nats"]))


def nats(model, ids: list[int], window: int) -> float:
    total = 0.0
    for first in range(0, len(ids) - 1, window - 1):
        part = torch.tensor([ids[first : first + window]])
        with torch.no_grad():
            total += float(model(part, labels=part).loss) * (part.shape[1] - 1)
    return total / (len(ids) - 1)


# mt_bench


def rated(request: dict) -> tuple[int, dict]:
    """A rating that the question decides; every tenth question or so gets none."""
    text = request["messages"][-1]["content"]
    number = sum(map(ord, text)) % 11
    said = f"Well. Rating: [[{number}]]" if number else "I would rather not say."
    usage = {"prompt_tokens": 100, "completion_tokens": 10}
    return 200, {"choices": [{"message": {"content": said}}], "usage": usage, "model": "judge-0.1"}


@pytest.fixture(scope="module")
def long_policy(toy, tmp_path_factory) -> Path:
    """The toy's policy that says it has room for MT-Bench's questions: its positions are rotary, no weight changes."""
    import shutil

    directory = Path(shutil.copytree(toy / "policy", tmp_path_factory.mktemp("long") / "policy"))
    config = json.loads((directory / "config.json").read_text()) | {"max_position_embeddings": 8192}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def bench(policy: Path, data_dir: Path, url: str, **more: object) -> list[str]:
    settings = {"judge.url": url, "judge.model": "the-judge", "judge.key_env": "null", "max_new_tokens": 16} | more
    return ["suites=[mt_bench]", f"model.path={policy}", f"mt_bench.path={data_dir / 'mt_bench'}"] + [
        f"mt_bench.{key}={value}" for key, value in settings.items()
    ]


def at(server: Scripted) -> str:
    return f"http://127.0.0.1:{server.server_port}/v1"


def test_mt_bench_counts_what_it_could_not_read(run, long_policy, data_dir, tmp_path, generated):
    prices = {"judge.prompt_price": 30, "judge.completion_price": 60}
    with Scripted(answer=rated) as server:
        said = run(*bench(long_policy, data_dir, at(server), **prices))
        asked = [request["messages"] for *_, request in server.requests]
    out = tmp_path / "out"
    assert len(asked) == 160 and generated == [40, 20, 20] * 2
    answers, judgments, (entry,) = rows(out, "mt_bench.answers"), rows(out, "mt_bench.judgments"), entries(out)
    result = entry["result"]
    ratings = [row["rating"] for row in judgments.values() if row["rating"] is not None]
    assert 0 < result["failed"] < 40 and result["failed"] + result["rated"] == result["judgments"] == 160
    assert result["rated"] == len(ratings) and result["score"] == pytest.approx(sum(ratings) / len(ratings))
    assert result["failures"] == [{"reason": "no rating in the reply", "count": result["failed"]}]
    assert sum(part["rated"] for part in result["by_category"]) == len(ratings) and len(result["by_category"]) == 8
    assert [part["rated"] + part["failed"] for part in result["by_turn"]] == [80, 80]
    assert result["judge"] == {
        "model": "the-judge", "url": f"{at(server)}/chat/completions", "called": ["judge-0.1"],
        "prompt_tokens": 16000, "completion_tokens": 1600, "cost": pytest.approx(0.576),
    }  # fmt: skip
    assert all(answers[key]["response"] in messages[-1]["content"] for key, messages in by_key(data_dir, asked).items())
    assert said.count("judge the-judge") == 11
    assert "16,000 prompt and 1,600 completion tokens, cost 0.576" in said
    assert f"{result['failed']} of 160 judgments failed" in said
    page = (out / "report.html").read_text()
    assert 'data-plot="radar"' in page and "judged by the-judge" in page and "What is missing" not in page


def by_key(data_dir: Path, asked: list[list[dict]]) -> dict[str, list[dict]]:
    """The judge's prompts by question and turn: the second turn's questions stand in prompts about it alone."""
    found = {}
    for line in (data_dir / "mt_bench" / "question.jsonl").read_text().splitlines():
        question = json.loads(line)
        for messages in asked:
            text = messages[-1]["content"]
            if question["turns"][0] in text:
                found[f"{question['question_id']}/{2 if question['turns'][1] in text else 1}"] = messages
    assert len(found) == 160
    return found


def test_another_judge_rates_the_same_answers_at_any_address(run, long_policy, data_dir, generated):
    few = {"questions": 8, "temperature": 0}
    with Scripted(answer=rated) as server:
        run(*bench(long_policy, data_dir, at(server), **few))
        assert generated == [8, 8] and len(server.requests) == 16
    with Scripted(answer=rated) as server:  # the same judge elsewhere: nothing to do
        assert "done already" in run(*bench(long_policy, data_dir, at(server), **few))
        assert len(server.requests) == 0
        run(*bench(long_policy, data_dir, at(server), **{"judge.model": "another"}, **few))
        assert generated == [8, 8] and len(server.requests) == 16


def refusing(words: list[str]) -> Callable:
    """A judge that refuses what has one of these words, and rates everything else with 9 after reasoning of 1."""

    def answer(request: dict) -> tuple[int, object]:
        if any(word in request["messages"][-1]["content"] for word in words):
            return 400, {"error": {"message": "too long"}}
        message = {"content": "<think>[[1]]</think> Rating: [[9]]", "reasoning_content": "[[2]]"}
        return 200, {"choices": [{"message": message, "finish_reason": "stop"}]}

    return answer


def test_what_got_no_reply_is_asked_again_by_the_next_start(run, long_policy, data_dir, tmp_path):
    """Of 16 judgments 4 are refused, then 2, then none; what has a reply is never asked for again."""
    lines = (data_dir / "mt_bench" / "question.jsonl").read_text().splitlines()
    turns = {row["category"]: row["turns"][0] for row in map(json.loads, reversed(lines))}
    words, out = [turns["writing"], turns["math"]], tmp_path / "out"
    for refused, asked in ((2, 16), (1, 4), (0, 2)):
        with Scripted(answer=refusing(words[:refused])) as server:
            said = run(*bench(long_policy, data_dir, at(server), questions=8, temperature=0))
            assert len(server.requests) == asked
        (entry,) = entries(out)
        result, judgments = entry["result"], rows(out, "mt_bench.judgments")
        assert (result["failed"], result["without_reply"], result["score"]) == (2 * refused, 2 * refused, 9.0)
        assert len(judgments) == 16 - 2 * refused and {row["rating"] for row in judgments.values()} == {9.0}
        assert ("without a reply: the next start asks again" in said) == bool(refused)
        assert not refused or f"{2 * refused} 400: too long" in said
    with Scripted(answer=refusing(words)) as server:
        assert "done already" in run(*bench(long_policy, data_dir, at(server), questions=8, temperature=0))
        assert not server.requests


def test_failures_that_an_earlier_version_wrote_down_are_asked_again(run, long_policy, data_dir, tmp_path):
    few, out = {"questions": 8, "temperature": 0}, tmp_path / "out"
    with Scripted(answer=refusing([])) as server:
        run(*bench(long_policy, data_dir, at(server), **few))
    (path,) = out.glob("mt_bench.judgments-*.jsonl")
    head, *kept = [json.loads(line) for line in path.read_text().splitlines()]
    kept[0] |= {"text": None, "rating": None, "failure": "529: Overloaded"}
    kept[1]["rating"] = 1.0  # read in the reasoning
    for row in kept:
        del row["ended"]
    path.write_text("".join(json.dumps(row) + "\n" for row in (head, *kept)))
    (out / "evaluation.json").unlink()
    with Scripted(answer=refusing([])) as server:
        run(*bench(long_policy, data_dir, at(server), **few))
        assert len(server.requests) == 1
    (entry,) = entries(out)
    assert (entry["result"]["score"], entry["result"]["rated"], entry["result"]["failed"]) == (9.0, 16, 0)


def test_a_judge_of_another_temperature_is_another(run, long_policy, data_dir, tmp_path):
    few = {"questions": 8, "temperature": 0}
    with Scripted(answer=refusing([])) as server:
        for temperature in (0, 0.0, "null", 0.5, "null"):
            run(*bench(long_policy, data_dir, at(server), **{"judge.temperature": temperature}, **few))
        sent = [request.get("temperature") for *_, request in server.requests]
    assert sent == [0.0] * 16 + [None] * 16 + [0.5] * 16


def test_replies_that_were_cut_are_told(run, long_policy, data_dir):
    def answer(request: dict) -> tuple[int, object]:
        return 200, {"choices": [{"message": {"content": "It is a good"}, "finish_reason": "length"}]}

    with Scripted(answer=answer) as server:
        said = run(*bench(long_policy, data_dir, at(server), questions=8, temperature=0))
    assert "16 no rating in the reply, which was cut at mt_bench.judge.max_tokens" in said
    assert "16 judgments were cut at mt_bench.judge.max_tokens; raise it" in said


JUDGMENTS = "mt_bench.judgments-*.jsonl"


def written(out: Path) -> list[str]:
    """Keys of the judgments that are on disk, in order."""
    lines = [line for path in out.glob(JUDGMENTS) for line in path.read_bytes().splitlines(keepends=True)]
    return [json.loads(line)["id"] for line in lines[1:] if line.endswith(b"\n")]


@pytest.mark.parametrize("number,code,twice", [(signal.SIGTERM, 143, 0), (signal.SIGKILL, -9, 4)])
def test_no_judgment_is_asked_for_twice(long_policy, data_dir, tmp_path, number, code, twice):
    """A signal that leaves time: none at all. A kill: none that was written, which is all but what was under way."""
    with Scripted(answer=rated, delay_s=0.01) as server:
        arguments = [
            "+recipe=toy",
            "run_dir=run",
            *bench(long_policy, data_dir, at(server), **{"judge.connections": 4}),
        ]
        process = Started("evaluate", arguments, tmp_path)
        assert process.wait_until(lambda: len(written(process.run)) >= 60), process.error()
        process.send(number)
        assert process.wait() == code
        before, asked_before = written(process.run), len(server.requests)
        assert 60 <= len(before) < 160 and not list(process.run.glob("evaluation.json"))
        assert asked_before - len(before) <= twice
        again = Started("evaluate", arguments, tmp_path)
        assert again.wait() == 0, again.error()
        prompts = [request["messages"][-1]["content"] for *_, request in server.requests]
    keys = written(process.run)
    assert len(keys) == len(set(keys)) == 160 and keys[: len(before)] == before
    assert len(set(prompts)) == 160 and len(prompts) <= 160 + twice
    assert f"{len(before)} of 160 judgments are there" in again.out()
    assert entries(process.run)[0]["result"]["judgments"] == 160


def test_answers_survive_a_kill(long_policy, data_dir, tmp_path):
    with Scripted(answer=rated) as server:
        arguments = ["+recipe=toy", "run_dir=run", *bench(long_policy, data_dir, at(server), max_new_tokens=200)]
        process = Started("evaluate", arguments, tmp_path)
        (out,) = [process.run]
        assert process.wait_until(lambda: any(out.glob("mt_bench.answers-*")) and len(lines_of(out)) >= 30)
        process.send(signal.SIGKILL)
        assert process.wait() == -9
        before = lines_of(out)
        again = Started("evaluate", arguments, tmp_path)
        assert again.wait() == 0, again.error()
    assert lines_of(out)[: len(before)] == before and len(lines_of(out)) == 161
    assert len(server.requests) == 160


def lines_of(out: Path) -> list[bytes]:
    (path,) = out.glob("mt_bench.answers-*")
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


# lm_eval


def test_without_the_harness_one_line_says_so(monkeypatch, toy, tmp_path, capsys):
    monkeypatch.setattr("starling_train.run.machine.find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["evaluate", "+recipe=toy", "suites=[lm_eval]", "lm_eval.tasks=[mmlu]"])
    with pytest.raises(SystemExit) as stopped:
        evaluate.main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        "error: suites: lm_eval is not installed; pip install 'starling-train[lm_eval]', or leave it out\n"
    )


@pytest.mark.parametrize(
    "how,expected,greedy",
    [
        ({"until": ["\n"], "max_gen_toks": 5, "do_sample": False}, (5, 1.0, ["\n"]), True),
        ({"until": "x", "do_sample": True, "temperature": 0.8}, (256, 0.8, ["x"]), False),
        ({"until": ["", "Q:"], "temperature": 0.0}, (256, 1.0, ["Q:"]), True),
        ({"do_sample": True, "temperature": 0}, (256, 1.0, []), True),
        ({"temperature": 0.5, "max_new_tokens": 9}, (9, 0.5, []), False),
        ({}, (256, 1.0, []), True),
    ],
)
def test_a_tasks_settings_become_the_rollouts(how, expected, greedy):
    from starling_train.config.sections import RolloutConfig

    limits, is_greedy = sampling(how, RolloutConfig(slots=3), 256)
    assert (limits.max_new_tokens, limits.temperature, limits.stop_strings) == expected
    assert is_greedy is greedy and limits.slots == 3 and dataclasses.asdict(limits)["engine"] == "slots"


OWN = {
    "own_choice": "output_type: multiple_choice\ndoc_to_text: '{{question}}'\ndoc_to_target: label\n"
    "doc_to_choice: choices\nmetric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n",
    "own_answer": "output_type: generate_until\ndoc_to_text: '{{question}}'\ndoc_to_target: answer\n"
    "generation_kwargs: {until: ['.'], max_gen_toks: 6, do_sample: false}\n"
    "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n",
    "own_text": "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{question}}'\n"
    "metric_list: [{metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}]\n",
}


@pytest.mark.skipif(find_spec("lm_eval") is None, reason="the extra lm_eval is not installed")
def test_the_harness_measures_tasks_of_ones_own(run, tmp_path, generated, capsys, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tasks").mkdir()
    data = [
        {"question": "What is iron?", "choices": ["qqqq zz", "A metal."], "label": 1, "answer": "x"},
        {"question": "Which animal sleeps?", "choices": ["The tiger.", "xyz"], "label": 0, "answer": "x"},
    ]
    (tmp_path / "tasks" / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
    for name, body in OWN.items():
        where = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/tasks/data.jsonl}}}}\n"
        (tmp_path / "tasks" / f"{name}.yaml").write_text(f"task: {name}\n{where}test_split: test\n{body}")
    monkeypatch.setattr(capsys, "readouterr", lambda: ("", ""))  # its bars and warnings are its own
    asked = ["suites=[lm_eval]", f"lm_eval.tasks=[{','.join(OWN)}]", "lm_eval.include=tasks"]
    run(*asked)
    out = tmp_path / "out"
    (entry,), kept = entries(out), rows(out, "lm_eval.requests")
    metrics = {part["task"]: part["metrics"] for part in entry["result"]["tasks"]}
    assert metrics["own_choice"]["acc"] in (0.0, 0.5, 1.0) and metrics["own_answer"]["exact_match"] == 0.0
    assert metrics["own_text"]["word_perplexity"] > 1 and generated == [2]
    assert len(kept) == 4 + 2 + 2
    cut(out, "lm_eval.requests", 5)
    run(*asked)
    assert entries(out)[0]["result"] == entry["result"] and rows(out, "lm_eval.requests").keys() == kept.keys()


# a judge that is a model behind a real server


@pytest.mark.slow
def test_transformers_serve_judges_the_toy_which_it_serves(long_policy, data_dir, tmp_path):
    """The same model answers 160 times and judges 160 times; what it says of itself is no rating, and that is told."""
    with ServedModel(long_policy, tmp_path / "serve.log") as server:
        more = {"judge.model": long_policy, "judge.max_tokens": 16, "judge.connections": 2}
        arguments = ["+recipe=toy", "run_dir=run", *bench(long_policy, data_dir, server.url, **more)]
        process = Started("evaluate", arguments, tmp_path)
        assert process.wait_until(lambda: len(written(process.run)) >= 50), process.error()
        process.send(signal.SIGTERM)
        assert process.wait() == 143
        before = written(process.run)
        assert server.requests() == len(before) < 160
        again = Started("evaluate", arguments, tmp_path)
        assert again.wait() == 0, again.error()
        assert server.requests() == 160
    (entry,) = entries(process.run)
    result = entry["result"]
    assert result["judgments"] == 160 and result["failed"] + result["rated"] == 160
    assert result["judge"]["prompt_tokens"] > 160 * 100 and result["judge"]["completion_tokens"] > 160
    assert written(process.run)[: len(before)] == before
