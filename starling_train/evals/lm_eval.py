"""The suite `lm_eval`: tasks of EleutherAI's evaluation harness, through its Python API, on the model that is loaded.

Text that a task requests comes from the rollout engine; log-probabilities come from the harness's own batches. Both are
kept as they come, by a hash of the request, so that an interrupted evaluation repeats no request. The harness is an
optional package (`pip install 'starling-train[lm_eval]'`), imported where it is used. A task's YAML may name Python
functions: give only directories that you trust as `lm_eval.include`.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from starling_train.config.fields import UserError
from starling_train.config.sections import RolloutConfig
from starling_train.evals.subjects import Subjects
from starling_train.evals.suite import ResultLine, Say, StartProgress, Suite, complete, data_of, unique
from starling_train.files.identity import sha256
from starling_train.files.journal import Journal
from starling_train.models.source import first_line
from starling_train.run.machine import is_installed

BOOTSTRAPS = 1000  # for standard errors of metrics without a formula


@dataclass
class LmEval(Suite):
    """Every metric of the harness's tasks."""

    name = "lm_eval"

    @classmethod
    def find(cls, subjects: Subjects) -> "LmEval":
        how = subjects.config.lm_eval
        if not is_installed("lm_eval"):
            raise UserError("suites: lm_eval is not installed; pip install 'starling-train[lm_eval]', or leave it out")
        settings = {
            **subjects.greedy_settings(0),
            "limit": how.limit,
            "fewshot": how.fewshot,
            "chat_template": how.chat_template,
            "seed": subjects.config.seed,
        }
        data = {"tasks": list(how.tasks), "harness": version("lm_eval"), "include": _included(how.include)}
        return cls(subjects, subjects.identity_of(cls.name, data, settings))

    def plan(self) -> str:
        how = self.subjects.config.lm_eval
        some = "" if how.limit is None else f", {how.limit:,} requests of each"
        return f"{', '.join(how.tasks)} with {self.subjects.config.model.path}{some}"

    def check(self, dry_run: bool) -> None:
        super().check(dry_run)
        manager = self._manager()
        names = self.subjects.config.lm_eval.tasks
        if unknown := [name for name in names if not manager.match_tasks([name])]:
            raise UserError(f"lm_eval.tasks: the harness has no '{unknown[0]}'; see `lm-eval ls tasks` for its names")
        if not dry_run:
            self._load(manager)

    def _manager(self) -> Any:
        from lm_eval.tasks import TaskManager

        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        how = self.subjects.config.lm_eval
        return TaskManager(include_path=str(Path(how.include).expanduser()) if how.include else None)

    def _load(self, manager: Any) -> None:
        """Load the tasks' data. Raises UserError where that fails."""
        names = self.subjects.config.lm_eval.tasks
        try:
            manager.load(list(names))
        except Exception as error:  # whatever data sets, YAML and optional packages of thousands of tasks raise
            raise UserError(
                f"lm_eval.tasks: {', '.join(names)} cannot be loaded ({type(error).__name__}: {first_line(error)[:200]}"
                "); download the data first, or install what the task needs"
            ) from error

    def measure(self, folder: Path, say: Say) -> dict[str, Any]:
        from lm_eval import simple_evaluate

        config = self.subjects.config
        how, seed = config.lm_eval, config.seed
        with self.journal(folder, "requests") as journal:
            measured = simple_evaluate(
                model=harness_model(self.subjects, journal, partial(self.progress, say)),
                tasks=list(how.tasks),
                task_manager=self._manager(),
                num_fewshot=how.fewshot,
                limit=how.limit,
                apply_chat_template=how.chat_template,
                log_samples=False,
                bootstrap_iters=BOOTSTRAPS,
                random_seed=seed,
                numpy_random_seed=seed,
                torch_random_seed=seed,
                fewshot_random_seed=seed,
            )
        counts = {task: of.get("effective", 0) for task, of in measured.get("n-samples", {}).items()}
        return {
            "tasks": [
                {"task": task, "requests": counts.get(task), "metrics": _numbers(metrics)}
                for task, metrics in measured["results"].items()
            ],
            "harness": version("lm_eval"),
        }

    def lines(self, result: dict[str, Any]) -> list[ResultLine]:
        whole = [ResultLine("", f"harness {result['harness']}", sum(part["requests"] or 0 for part in result["tasks"]))]
        return whole + [
            ResultLine(f"{part['task']}: {name}", _with_error(value, part["metrics"], name), part["requests"] or 0)
            for part in result["tasks"]
            for name, value in part["metrics"].items()
            if "_stderr" not in name
        ]


def harness_model(subjects: Subjects, journal: Journal, progress: Callable[[str], StartProgress]) -> Any:
    """Return the loaded policy as a model of the harness, whose requests go through the journal."""
    from lm_eval.models.huggingface import HFLM

    class Recorded(HFLM):
        def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = False, override_bs: Any = None) -> list:
            keys = [_key("logprob", context, continuation) for _, context, continuation in requests]
            ask = super()._loglikelihood_tokens

            def make(indices: list[int]) -> list[dict[str, Any]]:
                # True: no progress bar of the harness, which would appear anew for every group
                pairs = ask([requests[index] for index in indices], True, override_bs)
                return [{"logprob": float(logprob), "greedy": bool(is_greedy)} for logprob, is_greedy in pairs]

            rows = complete(journal, keys, make, progress("log-probabilities"))
            return [(row["logprob"], row["greedy"]) for row in rows]

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            prompts = [(request.args[0], json.dumps(request.args[1], sort_keys=True)) for request in requests]
            answers: dict[int, str] = {}
            for settings in dict.fromkeys(how for _, how in prompts):
                indices = [index for index, (_, how) in enumerate(prompts) if how == settings]
                texts = self._generated([prompts[index][0] for index in indices], json.loads(settings))
                answers |= dict(zip(indices, texts, strict=True))
            return [answers[index] for index in range(len(prompts))]

        def _generated(self, contexts: list[str], how: dict[str, Any]) -> list[str]:
            limits, greedy = sampling(how, subjects.config.rollout, self.max_gen_toks)
            room = self.max_length - limits.max_new_tokens
            if room < 1:
                raise UserError(
                    f"lm_eval.tasks: one asks for {limits.max_new_tokens} new tokens, the model has {self.max_length} "
                    "positions; leave it out"
                )
            prompts = [self.tok_encode(context, left_truncate_len=room) for context in contexts]
            keys = unique([_key("text", ids, how) for ids in prompts])
            bar = progress("answers")(len(keys), sum(key in journal for key in keys))
            questions = dict(zip(keys, prompts, strict=True))
            subjects.answer(questions, journal, limits, bar, greedy=greedy, purpose=("lm_eval",))
            return [journal.rows[key]["response"] for key in keys]

        def tok_decode(self, tokens: Any, skip_special_tokens: bool = True) -> str:
            return subjects.chat.text(tokens) if skip_special_tokens else super().tok_decode(tokens, False)

    rows = max(1, min(8, subjects.config.rollout.slots))
    return Recorded(
        pretrained=subjects.policy(),
        tokenizer=subjects.chat.tokenizer,
        backend="causal",
        batch_size=rows,
        add_bos_token=bool(subjects.chat.plain("")),  # where the tokenizer puts one in front of text by itself
    )


def sampling(how: dict[str, Any], rollout: RolloutConfig, longest: int) -> tuple[RolloutConfig, bool]:
    """Return (limits, greedy) of a task's generation settings: `until`, `max_gen_toks`, `do_sample`, `temperature`, ...

    how: the task's settings.
    rollout: the settings that the task does not give.
    longest: new tokens where the task does not limit them.
    """
    until = how.get("until") or []
    heat = float(how.get("temperature") or 0.0)
    limits = replace(
        rollout,
        max_new_tokens=int(how.get("max_gen_toks") or how.get("max_new_tokens") or longest),
        min_new_tokens=0,
        temperature=heat or 1.0,
        top_p=float(how.get("top_p") or 1.0),
        top_k=int(how.get("top_k") or 0),
        stop_strings=[text for text in ([until] if isinstance(until, str) else until) if text],
    )
    return limits, not how.get("do_sample", heat > 0) or heat == 0


def _key(kind: str, *request: Any) -> str:
    return hashlib.sha256(json.dumps([kind, *request], sort_keys=True).encode()).hexdigest()[:24]


def _included(path: str | None) -> dict[str, Any] | None:
    """Identify a directory of tasks by the contents of its files. Raises UserError if it is not a directory."""
    if path is None:
        return None
    directory = Path(path).expanduser()
    if not directory.is_dir():
        raise UserError(f"lm_eval.include: no such directory: {directory}; give one with the tasks' YAML files")
    files = sorted(file for file in directory.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    return data_of(path, ([str(file.relative_to(directory)), sha256(file)] for file in files))


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    """Return the finite numbers among a task's metrics; `acc,none` is `acc` with no filter."""
    named_ = {str(name).removesuffix(",none"): value for name, value in metrics.items()}
    return {
        name: float(value)
        for name, value in named_.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
        and name != "sample_len"
    }  # fmt: skip


def _with_error(value: float, metrics: dict[str, float], name: str) -> str:
    metric, _, kind = name.partition(",")
    error = metrics.get(f"{metric}_stderr" + (f",{kind}" if kind else ""))
    return f"{value:.4g}" if error is None else f"{value:.4g} ± {error:.2g}"
