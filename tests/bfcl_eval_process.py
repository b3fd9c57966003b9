"""The leaderboard's own package, `bfcl-eval`, in a process of its own: verdicts on answers, line by line.

The package is no dependency: it is used where it is installed, or where STARLING_BFCL_EVAL names a directory made by
`pip install --no-deps --target DIR bfcl-eval`. What it imports for other purposes has stand-ins here, which is why it
does not share a process with the tests.
"""

import importlib.util
import json
import os
import subprocess
import sys
import types
from collections.abc import Iterable
from typing import Any
from unittest.mock import MagicMock

DIRECTORY = os.environ.get("STARLING_BFCL_EVAL", "")
IS_THERE = bool(DIRECTORY) or importlib.util.find_spec("bfcl_eval") is not None
REASON = "bfcl-eval is not there: pip install --no-deps --target DIR bfcl-eval, and set STARLING_BFCL_EVAL=DIR"

UNUSED = (
    "dotenv", "mpmath", "overrides", "tabulate", "tenacity", "tree_sitter", "tree_sitter_java",
    "tree_sitter_javascript", "bfcl_eval.eval_checker.agentic_eval.agentic_checker",
    "bfcl_eval.eval_checker.eval_runner_helper", "bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker",
    "bfcl_eval.eval_checker.multi_turn_eval.multi_turn_utils", "bfcl_eval.model_handler.base_handler",
)  # fmt: skip


class Unused(types.ModuleType):
    """A module of which any name may be imported, and none is used."""

    __all__ = ()
    __path__ = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock(name=name)


def verdicts(asked: Iterable[dict]) -> list[list[bool | None]]:
    """The leaderboard's verdicts, one an answer; None where its program fails.

    asked: {"id", "category", "functions", "ground_truth", "answers"} of each case.
    """
    run = subprocess.run(
        [sys.executable, __file__], input="".join(json.dumps(row) + "\n" for row in asked), text=True,
        capture_output=True, check=False, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


def main() -> None:
    """Read cases from standard input, and write a line of verdicts for each."""
    sys.path[:0] = [DIRECTORY] if DIRECTORY else []
    sys.modules |= {name: Unused(name) for name in UNUSED}
    models = Unused("bfcl_eval.constants.model_config")
    models.MODEL_CONFIG_MAPPING = {"prompted": types.SimpleNamespace(underscore_to_dot=False)}
    sys.modules[models.__name__] = models
    from bfcl_eval.constants.enums import Language, ReturnFormat
    from bfcl_eval.eval_checker import eval_runner
    from bfcl_eval.model_handler.utils import default_decode_ast_prompting

    handler = types.SimpleNamespace(
        decode_ast=lambda answer, language, has_tool_call_tag: default_decode_ast_prompting(
            answer, language, has_tool_call_tag
        )
    )

    def verdict(case: dict, answer: str) -> bool | None:
        entry = {"id": case["id"], "question": [], "function": case["functions"]}
        try:
            if case["ground_truth"] is None:
                result = eval_runner._evaluate_single_relevance_entry(
                    handler, case["id"], answer, entry, "prompted", case["category"]
                )
            else:
                result = eval_runner._evaluate_single_ast_entry(
                    handler, case["id"], answer, case["ground_truth"], entry, "prompted", case["category"],
                    Language.PYTHON, ReturnFormat.PYTHON,
                )  # fmt: skip
        except Exception:  # its own mistake, whatever it is
            return None
        return result["valid"]

    for line in sys.stdin:
        case = json.loads(line)
        print(json.dumps([verdict(case, answer) for answer in case["answers"]]))


if __name__ == "__main__":
    main()
