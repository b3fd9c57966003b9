"""Whether the skills that a run's guard watches were kept."""

import re

from starling_train.report.judgement.finding import Finding, finding
from starling_train.report.judgement.limits import WATCH
from starling_train.report.markup import plain
from starling_train.report.metrics import suite_label
from starling_train.report.read_run import RunFiles, is_number, policy_step, series, setting


def findings(run: RunFiles) -> list[Finding]:
    """Return the finding of a run with a guard. run: with all its evaluations."""
    steps, kept = series(run, "guard/kept")
    if len(kept) < 2:
        return []
    lost_at = [step for step, value in zip(steps, kept, strict=True) if not value]
    then = setting(run.config, "guard.then")
    if not lost_at:
        return [finding("guard", f"No guarded skill was lost at any of {len(kept) - 1} evaluations.", 0.0)]
    at = f"at {'steps' if len(lost_at) > 1 else 'step'} {', '.join(f'{step:,}' for step in lost_at)}"
    text = f"{_lost_skills(run, lost_at[-1])}, {at}"
    step = policy_step(run)
    if step is not None:
        which = f"that of step {step:,}" if step else "the one that the run started from"
        return [finding("guard", f"{text}; the model is {which}.", state=WATCH)]
    if kept[-1]:
        return [finding("guard", f"{text}, and none at the end.", state=WATCH)]
    return [finding("guard", f"{text}, the last evaluation (guard.then={then}).", 1.0)]


def _lost_skills(run: RunFiles, step: int) -> str:
    """Return the skills that were lost at an evaluation, by how much each, as words."""
    line = next(line for line in run.metrics if line["step"] == step)
    skills = setting(run.config, "guard.skills")
    lost = []
    for entry in skills if isinstance(skills, list) else []:
        metric, _, points = str(entry).rpartition(":")
        key = f"guard/{metric.removeprefix('eval/')}_fall"
        fall, surely = (line[name] if is_number(line.get(name)) else 0.0 for name in (key, f"{key}_low"))
        if re.fullmatch(r"\d+(\.\d+)?", points) and surely > float(points):
            lost.append(f"{suite_label(metric)} by {plain(fall)} ({plain(surely)} beyond chance)")
    return f"Lost {', '.join(lost) or 'a skill'}"
