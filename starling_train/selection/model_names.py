"""What the model that transformers makes of a checkpoint calls its tensors: a selection names parameters of the model.

Files of vision-language models, of bare decoders and of experts have other names than the loaded model, and some hold
layers that it does not have. transformers' own conversion says which is which; nothing is loaded.
"""

from typing import Any
from weakref import WeakKeyDictionary

from starling_train.config.fields import UserError
from starling_train.models.causal_lm import build_empty
from starling_train.models.families.file_names import renamed
from starling_train.models.source import UNUSABLE, ModelSource
from starling_train.selection.freeze import is_tied
from starling_train.selection.module_types import LAYER

WRAPPERS = ("_orig_mod.", "module.", "base_model.model.")  # of torch.compile, of data parallelism, of PEFT
REWARD_HEADS = ("v_head.weight", "v_head.summary.weight")  # no causal language model: names are those of the file
_known: WeakKeyDictionary[ModelSource, "ModelNames"] = WeakKeyDictionary()


class ModelNames:
    """Names of a checkpoint's tensors, file -> model.

    absent: in the file, not in the model. is_tied: whether the model's head is its embeddings.
    """

    def __init__(self, names: dict[str, str] | None, absent: tuple[str, ...] = (), is_tied: bool = False):
        self._names, self.absent, self.is_tied = names, absent, is_tied

    @classmethod
    def of(cls, source: ModelSource) -> "ModelNames":
        """Find the names, once a source; the file's own where no causal language model can be made of its config.json.

        Raises UserError for names with the prefix of a wrapper, and for a model of which transformers makes no causal
        language model.
        """
        if source not in _known:
            _known[source] = _find(source)
        return _known[source]

    def name_of(self, tensor: str) -> str | None:
        """Return the model's name for a tensor of the file; None for one that it does not have."""
        if self._names is None:
            return tensor
        return self._names.get(tensor)


def _find(source: ModelSource) -> ModelNames:
    held = [entry.name for entry in source.entries]
    for prefix in WRAPPERS:
        if held and any(LAYER.match(name.removeprefix(prefix)) for name in held if name.startswith(prefix)):
            raise UserError(
                f"{source.key}: the tensors of {source.directory} are named '{prefix}...', after a wrapper; save the "
                "model inside it again"
            )
    if not held or not source.has_config or set(held) & set(REWARD_HEADS):
        return ModelNames(None)
    try:
        _ = source.config
    except UserError:  # a type that transformers does not know
        return ModelNames(None)
    config = source.policy_config
    try:
        model: Any = build_empty(config)
    except UNUSABLE:
        return ModelNames(None)
    new_names = {name: new.name for name, new in renamed(model, held).items()}
    known = set(model.state_dict())
    names = {name: _chosen(name, new) for name, new in new_names.items() if new in known or not _is_of_layers(name)}
    if not any(map(LAYER.match, names.values())):
        return ModelNames(None)  # another architecture's tensors: whoever loads them says so
    absent = tuple(name for name in held if name not in names)
    return ModelNames(names, absent, is_tied(model))


def _is_of_layers(name: str) -> bool:
    return LAYER.match(name) is not None


def _chosen(name: str, new: str) -> str:
    """Take the model's decoder and the file's name in the layer: there each expert has a name of its own."""
    ours, theirs = LAYER.fullmatch(name), LAYER.fullmatch(new)
    if not ours or not theirs:
        return new
    return new[: theirs.start(2)] + ours[2]
