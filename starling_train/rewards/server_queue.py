"""Requests that arrive one by one -> batches for a reward model that one thread owns."""

import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

from starling_train.models.reward.model import RewardModel


class Scored(NamedTuple):
    """The scores of a request.

    truncated: how many of its answers were too long and lost their beginning. shortened: of its conversations.
    """

    scores: list[float]
    truncated: int
    shortened: int


@dataclass
class ScoringJob:
    """One request. encoded is filled by the worker; scored gets its result, or the error of this request alone."""

    conversations: Sequence[list[dict]]
    scored: "Future[Scored]" = field(default_factory=Future)
    encoded: list[list[int]] = field(default_factory=list)
    truncated: int = 0
    shortened: int = 0


class RewardQueue:
    """Dynamic batching: while one batch is scored, the next requests gather.

    A request never waits when requests come one at a time. After a batch that several requests shared, the next one
    waits up to wait_s for as many again, or until the batch has the tokens of one forward pass.
    """

    def __init__(self, model: RewardModel, wait_s: float) -> None:
        self._model, self._wait_s = model, wait_s
        self._jobs: queue.SimpleQueue[ScoringJob | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="reward-model", daemon=True)
        self._thread.start()

    def submit(self, conversations: Sequence[list[dict]]) -> "Future[Scored]":
        """Return the scores of one request, to come.

        Conversations must be checked; what a template refuses is a UserError.
        """
        job = ScoringJob(conversations)
        self._jobs.put(job)
        return job.scored

    def close(self) -> None:
        """End after the requests that are waiting."""
        self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        shared = 1  # requests in the batch before
        while (first := self._jobs.get()) is not None:
            jobs, last = self._gather(first, shared)
            self._score(jobs)
            shared = len(jobs)
            if last:
                return

    def _gather(self, first: ScoringJob, shared: int) -> tuple[list[ScoringJob], bool]:
        """Gather (a batch, whether `close` was met)."""
        jobs = [first]
        tokens = self._encode(first)
        deadline = time.monotonic() + self._wait_s
        while tokens < self._model.tokens_per_batch:
            wait = deadline - time.monotonic() if len(jobs) < shared else 0.0
            try:
                job = self._jobs.get(timeout=wait) if wait > 0 else self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is None:
                return jobs, True
            jobs.append(job)
            tokens += self._encode(job)
        return jobs, False

    def _encode(self, job: ScoringJob) -> int:
        """Encode a request and count its tokens; 0 if it was cancelled or cannot be scored, which it then knows."""
        if not job.scored.set_running_or_notify_cancel():
            return 0
        before = self._model.truncated, self._model.shortened
        try:
            job.encoded = [self._model.encode(messages) for messages in job.conversations]
        except Exception as error:  # whatever one request does to the template, the others go on
            job.scored.set_exception(error)
        job.truncated, job.shortened = self._model.truncated - before[0], self._model.shortened - before[1]
        return sum(map(len, job.encoded))

    def _score(self, jobs: Sequence[ScoringJob]) -> None:
        jobs = [job for job in jobs if not job.scored.done()]
        try:
            scores = iter(self._model.score_ids([ids for job in jobs for ids in job.encoded]))
        except Exception as error:  # e.g. out of memory: reported to these requests, and the next batch is tried
            for job in jobs:
                job.scored.set_exception(error)
            return
        for job in jobs:
            job.scored.set_result(Scored([next(scores) for _ in job.encoded], job.truncated, job.shortened))
