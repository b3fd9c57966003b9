"""Rollouts on vLLM: what it is given, what it is asked, and how its weights follow those that train."""
