"""The verdict on a run: its findings, the worst first."""

from collections.abc import Sequence

from starling_train.report.judgement import answers, guard, results, training
from starling_train.report.judgement.finding import Finding
from starling_train.report.judgement.limits import BAD, SEVERITY, WATCH
from starling_train.report.read_run import RunFiles, of_policy


def findings(run: RunFiles) -> list[Finding]:
    """Return the findings of every check that the run has the numbers for, the worst first.

    They are of the model that the run gives; what its guard has seen is of all evaluations.
    """
    judged = of_policy(run)
    found = [*results.findings(judged), *training.findings(judged), *answers.findings(judged), *guard.findings(run)]
    return sorted(found, key=lambda one: SEVERITY.index(one.state))


def summary(found: Sequence[Finding]) -> tuple[str, str]:
    """Return (the worst state; a verdict in one line that names what is not good)."""
    if not found:
        return "note", "Nothing to judge yet"
    for state, words in ((BAD, "Bad"), (WATCH, "Look at")):
        names = list(dict.fromkeys(one.fault for one in found if one.state == state))
        if names:
            return state, f"{words}: {', '.join(names)}"
    good = sum(one.state == "good" for one in found)
    return "good", f"Good: {good} of {good} checks passed" if good > 1 else "Good"
