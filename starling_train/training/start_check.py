"""The model of a run, compared with transformers' plain forward before its first step."""

import torch

from starling_train.config.dpo import DpoConfig
from starling_train.config.fields import UserError
from starling_train.config.ppo import PpoConfig
from starling_train.data.chat import Chat
from starling_train.models.actors import Actors
from starling_train.models.families.ways import Comparison, plain_logits
from starling_train.rollout import exclusions, start_check
from starling_train.run.machine import dtype_note


def notes(actors: Actors, config: PpoConfig | DpoConfig, chat: Chat, generates: bool = True) -> list[str]:
    """Return the lines on ids that no response has, what would be faster, and what falls back (`fallbacks`).

    generates: whether there are rollouts; an engine with weights of its own is then opened, and has a line.
    """
    engine = config.rollout.engine if generates else ""
    odd_ids = exclusions.lines(actors.policy.config, chat) if engine else []
    policy = actors.policy
    size = sum(parameter.numel() for parameter in policy.parameters())
    offered = dtype_note(str(policy.dtype).removeprefix("torch."), size, policy.device.type)
    faster = [line for line in (offered, start_check.compiler_line(policy, engine)) if line]
    opened = start_check.opened(policy, chat, config.rollout, config.data.max_prompt_tokens) if engine else []
    return [*odd_ids, *faster, *fallbacks(actors, engine), *opened]


def fallbacks(actors: Actors, engine: str) -> list[str]:
    """Return the line that says what falls back for this model and what that costs; nothing where nothing does.

    engine: `rollout.engine`. Raises UserError if the reference, which shares what is frozen, computes something else
    than the policy.
    """
    if actors.reference is not None:
        with torch.no_grad():
            comparison = Comparison(actors.reference)
            same = [plain_logits(actors.policy, ids) for ids in comparison.sequences]
        if not comparison.agree(torch.cat(same)):
            raise UserError(
                f"model.path: a copy of this {actors.policy.config.model_type} that shares its frozen tensors computes "
                "something else, so that it has no reference; give another model"
            )
    line = start_check.line(actors.policy, actors.ways, engine)
    return [line] if line else []
