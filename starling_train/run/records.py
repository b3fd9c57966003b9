"""Where the seconds of a step go."""

import time


class Clock:
    """Seconds by phase of one step."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self._laps: dict[str, float] = {}

    def lap(self, phase: str) -> None:
        """Count the seconds since the last lap as spent in this phase."""
        now = time.perf_counter()
        self._laps[phase] = self._laps.get(phase, 0.0) + now - self._last
        self._last = now

    def total(self) -> float:
        return time.perf_counter() - self._start

    def metrics(self, samples: int, tokens: int) -> dict[str, float]:
        """Return `time/*` and `throughput/*`; samples and tokens: what the step produced or learned from."""
        seconds = sum(self._laps.values())
        return {f"time/{phase}_s": lap for phase, lap in self._laps.items()} | {
            "time/step_s": seconds,
            "throughput/samples_per_s": samples / seconds,
            "throughput/tokens_per_s": tokens / seconds,
        }
