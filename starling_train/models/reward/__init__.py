"""Reward models: conversations -> scores, batched by length, the same whatever shares the batch.

Three kinds. starling_7b and starling_34b are a Llama transformer with a linear head `v_head` on the last
hidden state (their model cards); sequence_classification is any transformers classifier with one label.

Where the head is read (`position`): `last_token` is the last real token, as in the authors' training code and
Starling-RM-34B's card. `card` follows the scoring code on Starling-RM-7B-alpha's card: it takes the id of BOS
for the id of the padding, pads to max_length (2048) and so reads the head on the last *padded* position.
Which of the two the checkpoint was trained with is not documented.
"""

from starling_train.data.reward_templates import encode_conversation
from starling_train.models.reward.checkpoint import write_starling_7b, write_starling_34b
from starling_train.models.reward.model import RewardModel, load_reward_model
from starling_train.models.reward.net import RewardNet

__all__ = [
    "RewardModel",
    "RewardNet",
    "encode_conversation",
    "load_reward_model",
    "write_starling_7b",
    "write_starling_34b",
]
