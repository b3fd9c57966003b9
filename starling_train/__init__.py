"""PPO from AI feedback on the layers that a signal-to-noise scan selects."""

__version__ = "0.1.0"
