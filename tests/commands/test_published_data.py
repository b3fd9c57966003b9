"""`dpo`, `rm` and `evaluate` on preferences as people publish them: the numbers of the same pairs in our own form.

Real commands of two steps, each in a process of its own that is forked from one with everything imported.
"""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import RIGHT
from fault_process import Started

COUNT = 12
SHORT = {
    "dpo": "data.eval_prompts=4 dpo.prompts_per_step=4 evaluation.responses=0 optim.learning_rate=0.01 "
    "dpo.max_length=128 data.max_prompt_tokens=100",
    "rm": "data.eval_prompts=4 rm.prompts_per_step=4 optim.learning_rate=0.01",
    "evaluate": "",
}  # fmt: skip


def said(*contents):
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


def pairs():
    """(messages in front, better, worse); every third conversation has three turns in front of its answers."""
    for i in range(COUNT):
        asked = said(f"What is {i}?", f"It is {i}.", "Say more.") if i % 3 == 0 else said(f"How is {i}?")
        yield asked, f"good {i}", f"bad and {i}"


def own(here):
    rows = [{"prompt": asked, "chosen": better, "rejected": worse} for asked, better, worse in pairs()]
    file = here / "own.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [f"path={file}"]


def ultrafeedback(here):
    """A directory laid out as on the hub, with two splits, and two rows that nothing can be learned from."""
    rows = []
    for asked, better, worse in pairs():
        chosen, rejected = ([*asked, {"role": "assistant", "content": text}] for text in (better, worse))
        rows.append({"prompt": asked[0]["content"], "prompt_id": "1", "chosen": chosen, "rejected": rejected,
                     "messages": chosen, "score_chosen": 8.0, "score_rejected": 2.0})  # fmt: skip
    odd = [rows[0] | {"prompt": "Something else"}, rows[1] | {"chosen": None}]
    for split, content in (("train_prefs", [*rows, *odd]), ("test_prefs", rows[:1])):
        file = here / "set" / "data" / f"{split}-00000-of-00001.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(content), file)
    return [f"path={here / 'set'}", "split=train_prefs"]


def hh_rlhf(here):
    """Text alone, in a .csv file whose columns have other names."""
    lines = ["good,bad"]
    for asked, *answers in pairs():
        begun = "".join(f"\n\n{'Assistant' if i % 2 else 'Human'}: {m['content']}" for i, m in enumerate(asked))
        lines.append(",".join(f'"{begun}\n\nAssistant: {answer}"' for answer in answers))
    (here / "rows.csv").write_text("\n".join(lines) + "\n")
    return [f"path={here / 'rows.csv'}", "columns={chosen: good, rejected: bad}"]


def numbers(folder, command, models, data):
    """What a run measures, without times; and what it says."""
    folder.mkdir()
    section = "preference" if command == "evaluate" else "data"
    right = RIGHT[command].format(here=folder, policy=models / "policy", reward=models / "reward", run="run")
    run = Started(command, [*right.split(), *SHORT[command].split(), *(f"{section}.{key}" for key in data)], folder)
    assert run.wait() == 0, run.error()
    if command == "evaluate":
        (entry,) = json.loads((run.run / "evaluation.json").read_text())["results"]
        return entry["result"], run.out()
    rows = [json.loads(line) for line in (run.run / "metrics.jsonl").read_text().splitlines()]
    untimed = ("time/", "throughput/", "memory/")
    return [{k: v for k, v in row.items() if not k.startswith(untimed)} for row in rows], run.out()


@pytest.mark.parametrize("command", SHORT)
def test_published_pairs_give_the_numbers_of_our_own_form(command, small_models, tmp_path):
    expected, _ = numbers(tmp_path / "own", command, small_models, own(tmp_path))
    measured, told = numbers(tmp_path / "ultrafeedback", command, small_models, ultrafeedback(tmp_path))
    assert measured == expected and (command == "evaluate" or len(expected) == 3)
    assert (
        "1 prompt and chosen contradict each other (first " in told
        and "train_prefs-00000-of-00001.parquet, row 13)" in told
    )
    assert "without two answers of different rank (first " in told and ".parquet, row 14)" in told
    if command != "evaluate":
        assert "14 rows read (pairs beside prompt and messages, as in UltraFeedback): " in told
    if command == "dpo":
        assert numbers(tmp_path / "hh", command, small_models, hh_rlhf(tmp_path))[0] == expected
