"""How good a policy and a reward model are: suites for `evaluate`, and held-out evaluation during training."""
