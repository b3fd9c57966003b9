"""Following instructions, a skill that training must keep: prompts whose answers a program can check."""

from starling_train.evals.instructions.checks import CHECKS, is_followed
from starling_train.evals.instructions.prompts import Instruction, load

__all__ = ["CHECKS", "Instruction", "is_followed", "load"]
