"""Responses drawn from the live training weights: two engines, and what a rollout leaves behind."""
