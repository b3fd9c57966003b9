"""The suite `mt_bench`: two-turn answers of the policy, each turn rated from 1 to 10 by a judge behind an API.

Answers depend on model, questions and settings only, so another judge rates the same answers. A judgment that failed
(no rating in the reply, or no reply) is counted and listed, never replaced by a number. One without a reply is not
written down, so that the next start asks for it again.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from starling_train.config.fields import given
from starling_train.data.conversations import with_answer
from starling_train.evals.mt_bench.bench import TURNS, Bench, Question, load
from starling_train.evals.mt_bench.judge import Judge, Reply, endpoint, key_of
from starling_train.evals.mt_bench.rating import CUT, rating, why_unrated
from starling_train.evals.subjects import Subjects
from starling_train.evals.suite import ResultLine, Say, Suite, about, data_of, digest
from starling_train.files.journal import Journal

RATED = "outside its reasoning"  # the part of a reply; results from before are made again, from the same judgments


@dataclass
class MtBench(Suite):
    """The suite: the mean rating of both turns of all questions, and of each category.

    answered: everything the answers depend on, whoever judges them.
    judged: everything the judge's replies depend on, however a rating is read in them.
    """

    bench: Bench
    answered: dict[str, Any]
    judged: dict[str, Any]

    name = "mt_bench"

    @classmethod
    def find(cls, subjects: Subjects) -> "MtBench":
        how = subjects.config.mt_bench
        with about("mt_bench.path"):
            bench = load(Path(given(how.path)).expanduser(), how.questions)
        data = data_of(given(how.path), ([q.id, q.turns, q.temperature(how.temperature)] for q in bench.questions))
        answered = subjects.identity_of(cls.name, data, subjects.sampled_settings(how.max_new_tokens, how.temperature))
        prompts = digest([[asdict(q) for q in bench.questions], [asdict(p) for p in bench.prompts.values()]])
        # by its name, at whatever address
        judge: dict[str, Any] = {"model": how.judge.model, "max_tokens": how.judge.max_tokens}
        if how.judge.temperature != 0:
            judge["temperature"] = how.judge.temperature
        judged = answered | {"judge": {**judge, "prompts": prompts}}
        return cls(subjects, judged | {"rated": RATED}, bench, answered, judged)

    def plan(self) -> str:
        judge = self.subjects.config.mt_bench.judge
        return (
            f"{len(self.bench.questions):,} questions of {self.identity['data']['path']} with "
            f"{self.subjects.config.model.path}, {len(TURNS) * len(self.bench.questions):,} judgments of {judge.model} "
            f"at {endpoint(judge.url)}"
        )

    def check(self, dry_run: bool) -> None:
        how = self.subjects.config.mt_bench
        if not dry_run:
            key_of(how.judge)
        self.subjects.check_policy()
        both = max(len(self._encode(question, [""])) for question in self.bench.questions)
        key = "mt_bench.max_new_tokens"
        self.subjects.check_room(both + 2 * how.max_new_tokens, "two turns and their answers", key)

    def _encode(self, question: Question, answers: Sequence[str]) -> list[int]:
        """Encode the conversation up to where the next answer begins."""
        messages: list[dict] = []
        for turn, answer in zip(question.turns, answers, strict=False):
            messages = with_answer([*messages, {"role": "user", "content": turn}], answer)
        messages.append({"role": "user", "content": question.turns[len(answers)]})
        return self.subjects.chat.prompt(messages)

    def measure(self, folder: Path, say: Say) -> dict[str, Any]:
        with self.journal(folder, "answers", self.answered) as journal:
            self._answer(journal, say)
            answers = dict(journal.rows)
        with self.journal(folder, "judgments", self.judged) as journal:
            for key in [key for key, row in journal.rows.items() if row["text"] is None]:
                del journal.rows[key]  # earlier versions wrote down what failed
            failed = self._judge(answers, journal, say)
            return self._result(answers, journal.rows | failed)

    def is_complete(self, result: dict[str, Any]) -> bool:
        return not result["without_reply"]

    def _answer(self, journal: Journal, say: Say) -> None:
        """Answer both turns of every question, those of one temperature together."""
        how, questions = self.subjects.config.mt_bench, self.bench.questions
        progress = self.progress(say, "answers")(len(TURNS) * len(questions), len(journal.rows))
        for turn in TURNS:
            for heat in sorted({question.temperature(how.temperature) for question in questions}):
                prompts = {
                    f"{question.id}/{turn}": self._encode(question, _texts(journal.rows, question, turn - 1))
                    for question in questions
                    if question.temperature(how.temperature) == heat
                }
                limits = self.subjects.limits(how.max_new_tokens, **({"temperature": heat} if heat else {}))
                purpose = (self.name, turn, f"{heat:g}")
                self.subjects.answer(prompts, journal, limits, progress, greedy=heat == 0, purpose=purpose)

    def _judge(self, answers: dict[str, Any], journal: Journal, say: Say) -> dict[str, Any]:
        """Have judged what the journal has no judgment of; return the rows of the requests that got no reply."""
        missing = {
            f"{question.id}/{turn}": self.bench.judgment(question, turn, _texts(answers, question, turn))
            for question in self.bench.questions
            for turn in TURNS
            if f"{question.id}/{turn}" not in journal
        }
        failed: dict[str, Any] = {}
        if not missing:
            return failed
        total = len(TURNS) * len(self.bench.questions)
        progress = self.progress(say, "judgments")(total, len(journal.rows))

        def take(key: str, reply: Reply) -> None:
            if reply.text is None:
                failed[key] = asdict(reply) | {"rating": None}
            else:
                rated = rating(reply.text)
                failure = why_unrated(reply.text, reply.ended) if rated is None else ""
                journal.add(key, asdict(reply) | {"rating": rated, "failure": failure})
            progress.step()

        judge = Judge(self.subjects.config.mt_bench.judge)
        try:
            grace_s = self.subjects.config.checkpoint.grace_s
            judge.ask_all(missing, take, grace_s, is_known=bool(journal.rows))
        finally:
            judge.close()
        return failed

    def _result(self, answers: dict[str, Any], judgments: dict[str, Any]) -> dict[str, Any]:
        rated = {key: None if row["text"] is None else rating(row["text"]) for key, row in judgments.items()}

        def part(keys: list[str]) -> dict[str, Any]:
            ratings = [found for key in keys if (found := rated[key]) is not None]
            mean = fmean(ratings) if ratings else None
            return {"score": mean, "rated": len(ratings), "failed": len(keys) - len(ratings)}

        questions = self.bench.questions
        by_category = {
            name: [f"{q.id}/{turn}" for q in questions if q.category == name for turn in TURNS]
            for name in dict.fromkeys(q.category for q in questions)
        }
        keys = [f"{q.id}/{turn}" for q in questions for turn in TURNS]
        failures = Counter(_failure(judgments[key]) for key in keys if rated[key] is None)
        return {
            **part(keys),
            "judgments": len(keys),
            "by_category": [{"category": name, **part(some)} for name, some in by_category.items()],
            "by_turn": [{"turn": turn, **part([f"{q.id}/{turn}" for q in questions])} for turn in TURNS],
            "failures": [{"reason": reason, "count": count} for reason, count in failures.most_common()],
            "without_reply": sum(judgments[key]["text"] is None for key in keys),
            "cut_judgments": sum(judgments[key].get("ended", "").lower() in CUT for key in keys),
            "answers": {
                "tokens_mean": fmean(len(answers[key]["ids"]) for key in keys),
                "cut": sum(not answers[key]["ended"] for key in keys),
            },
            "judge": self._usage([judgments[key] for key in keys]),
        }

    def _usage(self, judgments: list[dict[str, Any]]) -> dict[str, Any]:
        judge = self.subjects.config.mt_bench.judge
        counts = {name: sum(row[name] for row in judgments) for name in ("prompt_tokens", "completion_tokens")}
        cost = None
        if judge.prompt_price is not None and judge.completion_price is not None:
            prices = (judge.prompt_price, judge.completion_price)
            cost = sum(count * price for count, price in zip(counts.values(), prices, strict=True)) / 1e6
        called = sorted({row["model"] for row in judgments if row["model"]})
        return {"model": judge.model, "url": endpoint(judge.url), "called": called, **counts, "cost": cost}

    def lines(self, result: dict[str, Any]) -> list[ResultLine]:
        judge = result["judge"]["model"]
        turns = [(f"turn {part['turn']}", part) for part in result["by_turn"]]
        parts = [(part["category"], part) for part in result["by_category"]]
        return [
            ResultLine(f"judge {judge}" if not name else f"{name}, judge {judge}", _score(part), part["rated"])
            for name, part in [("", result), *turns, *parts]
        ]

    def notes(self, result: dict[str, Any]) -> list[str]:
        judge, answers = result["judge"], result["answers"]
        called = f" (calls itself {', '.join(judge['called'])})" if set(judge["called"]) - {judge["model"]} else ""
        cost = "" if judge["cost"] is None else f", cost {judge['cost']:.4g}"
        failed = "; ".join(f"{part['count']:,} {part['reason']}" for part in result["failures"])
        again = f" ({result['without_reply']:,} without a reply: the next start asks again)"
        notes = [
            f"judged by {judge['model']}{called} at {judge['url']}: {judge['prompt_tokens']:,} prompt and "
            f"{judge['completion_tokens']:,} completion tokens{cost}; ratings of another judge do not compare",
            f"{result['failed']:,} of {result['judgments']:,} judgments failed"
            + (f": {failed}" if failed else "")
            + (again if result["without_reply"] else ""),
            f"answers are {answers['tokens_mean']:.4g} tokens long on average, {answers['cut']:,} of "
            f"{result['judgments']:,} were cut at mt_bench.max_new_tokens",
        ]
        if result["cut_judgments"]:
            notes.append(f"{result['cut_judgments']:,} judgments were cut at mt_bench.judge.max_tokens; raise it")
        return notes


def _texts(rows: dict[str, Any], question: Question, turns: int) -> list[str]:
    """Return the first answers to a question."""
    return [rows[f"{question.id}/{turn}"]["response"] for turn in TURNS[:turns]]


def _failure(row: dict[str, Any]) -> str:
    """Say why a judgment has no rating."""
    return str(row["failure"] or why_unrated(row["text"], row.get("ended", "")))


def _score(part: dict[str, Any]) -> str:
    return "none rated" if part["score"] is None else f"{part['score']:.2f} of 10"
