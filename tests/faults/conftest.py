"""The small jobs that every fault test disturbs, and a table of what was done to them."""

import os
from collections import Counter

import pytest
from fault_jobs import GROUPS, JOBS, Job


@pytest.fixture(scope="session", params=[*JOBS, *(pytest.param(name, marks=pytest.mark.faults) for name in GROUPS)])
def job(request, toy, tmp_path_factory) -> Job:
    """Each command in turn, and `ppo` with groups, with the run that nothing disturbed: one for all workers, which
    share a folder."""
    ours = tmp_path_factory.getbasetemp()
    shared = ours.parent if "PYTEST_XDIST_WORKER" in os.environ else ours
    straight = Job(request.param, shared / f"straight-{request.param}" / "run")
    straight.measure()
    return straight


def pytest_terminal_summary(terminalreporter):
    """What `record_property("done", ...)` said, counted; and the longest time from a signal to a process's end."""
    properties = [item for report in terminalreporter.stats.get("passed", []) for item in report.user_properties]
    for text, count in sorted(Counter(text for name, text in properties if name == "done").items()):
        terminalreporter.write_line(f"{count:4} x {text}")
    if seconds := [value for name, value in properties if name == "seconds"]:
        terminalreporter.write_line(f"signal to end of process: {max(seconds):.2f} s at most, of {len(seconds)}")
