"""What is downloaded of a model's repository, and what is said where it cannot be: a hub on loopback, real clients."""

import json

import pytest
from hub_server import TOKEN, Hub, Repository
from model_directories import source
from safetensors.torch import load_file, save

from starling_train.config.fields import UserError
from starling_train.models.source import ModelSource

ID = "org/small"
JUNK = (
    "README.md", ".gitattributes", "LICENSE.txt", "original/consolidated.00.pth", "original/params.json",
    "consolidated.safetensors", "model.fp16.safetensors", "onnx/model.onnx", "onnx/config.json", "m.Q4_K_M.gguf",
    "tf_model.h5", "flax_model.msgpack", "training_args.bin", "optimizer.bin", "trainer_state.json", "runs/events.1",
    "adapter/adapter_config.json", "modeling_small.py", "model-00001-of-00009.safetensors",
)  # fmt: skip
SMALL = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
PEFT = {"peft_type": "LORA", "base_model_name_or_path": "org/base"}


@pytest.fixture(scope="session")
def files(small_models) -> dict[str, bytes]:
    """The policy's files, and beside them everything that people upload."""
    held = {file.name: file.read_bytes() for file in (small_models / "policy").iterdir()}
    return held | dict.fromkeys(JUNK, b"{}") | {"additional_chat_templates/tool.jinja": b"x"}


def sharded(files: dict[str, bytes], kind: str = "model", suffix: str = "safetensors") -> dict[str, bytes]:
    """The same in two shards and an index. Those of `.bin` only have their names."""
    from safetensors.torch import load

    held = dict(files)
    tensors = load(held.pop("model.safetensors"))
    names, named = sorted(tensors), {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        shard = f"{kind}-0000{number}-of-00002.{suffix}"
        is_real = suffix == "safetensors"
        held[shard] = save({name: tensors[name] for name in part}, {"format": "pt"}) if is_real else b"x"
        named |= dict.fromkeys(part, shard)
    return held | {f"{kind}.{suffix}.index.json": json.dumps({"metadata": {}, "weight_map": named}).encode()}


@pytest.fixture
def hub(monkeypatch, tmp_path, files):
    with Hub({ID: Repository(dict(files))}) as hub:
        hub.use(monkeypatch, tmp_path)
        yield hub


def fetched(hub) -> set[str]:
    names = sorted(hub.fetched)
    assert names == sorted(set(names)), "a file was downloaded twice"
    hub.fetched.clear()
    return set(names)


def refused(path: str = ID, **settings) -> str:
    with pytest.raises(UserError) as error:
        ModelSource.open(path, "model.path", **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_of_a_repository_with_both_sets_the_one_that_is_read_is_downloaded(hub, files, small_models):
    hub.repositories[ID].files |= {"pytorch_model.bin": b"x"} | sharded(files) | sharded(files, "pytorch_model", "bin")
    opened = source(ID)
    templates = {"additional_chat_templates/tool.jinja"}
    assert fetched(hub) == SMALL | templates | {"model.safetensors"}
    assert opened.entries and opened.files.unread == ()
    held, local = (load_file(path / "model.safetensors") for path in (opened.directory, small_models / "policy"))
    assert held.keys() == local.keys() and all((held[name] == local[name]).all() for name in held)
    source(ID)
    assert fetched(hub) == set()


def test_the_shards_that_the_index_names_are_downloaded_and_no_other(hub, files):
    del hub.repositories[ID].files["model.safetensors"]
    hub.repositories[ID].files |= sharded(files) | {"pytorch_model.bin": b"x"}
    assert source(ID).entries
    weights = {name for name in fetched(hub) if "model" in name}
    assert weights == {f"model-0000{n}-of-00002.safetensors" for n in (1, 2)} | {"model.safetensors.index.json"}


@pytest.mark.parametrize(
    ("held", "only", "expected"),
    [
        ({"pytorch_model.bin": b"x"}, "", {"pytorch_model.bin"}),
        ({"pytorch_model.bin": b"x", "model.safetensors": b"x"}, "bin", {"pytorch_model.bin"}),
        ({"other.safetensors": b"x", "model.safetensors": b"x",
          "config.json": b'{"transformers_weights": "other.safetensors"}'}, "", {"other.safetensors"}),
    ],
)  # fmt: skip
def test_the_resolver_decides_on_the_hub_as_in_a_directory(hub, files, held, only, expected):
    del hub.repositories[ID].files["model.safetensors"]
    hub.repositories[ID].files |= held
    opened = ModelSource.open(ID, only=only)
    assert {file.name for file in opened.files.read} == expected
    assert {name for name in fetched(hub) if name.endswith((".safetensors", ".bin"))} == expected


def test_without_weights_nothing_large_is_downloaded_and_a_sharded_model_can_be_described(hub, files):
    del hub.repositories[ID].files["model.safetensors"]
    hub.repositories[ID].files |= sharded(files)
    opened = ModelSource.open(ID, weights=False)
    assert fetched(hub) == SMALL | {"additional_chat_templates/tool.jinja"} and opened.entries == []
    assert len(opened.tokenizer) > 100


@pytest.mark.parametrize("beside", [True, False])
def test_an_adapter_on_the_hub_is_refused_before_weights_are_downloaded(hub, beside):
    held = hub.repositories[ID].files
    held |= {"adapter_config.json": json.dumps(PEFT).encode(), "adapter_model.safetensors": b"x"}
    if not beside:
        del held["model.safetensors"]
    line = refused(weights=True)
    assert line.startswith(f"model.path: {ID} holds an adapter of org/base (adapter_config.json and adapter_model.")
    assert ("beside a model's weights" in line) == beside and "AutoPeftModelForCausalLM.from_pretrained('org/sm" in line
    assert not [name for name in fetched(hub) if name.endswith(".safetensors")]
    assert "holds an adapter of org/base" in refused(weights=False)
    assert len(ModelSource.open_tokenizer(ID, "reward.tokenizer").tokenizer) > 100


def test_a_repository_without_weights_says_what_it_has_instead(hub):
    held = hub.repositories[ID].files
    for name in [name for name in held if name.endswith((".safetensors", ".bin", ".h5", ".msgpack"))]:
        del held[name]
    assert "model.path: 'org/small' has no weights by a name that transformers reads" in refused()
    assert "only m.Q4_K_M.gguf; download the model's safetensors files" in refused()
    held |= {"model-00001-of-00009.safetensors": b"x"}
    assert "has model-00001-of-00009.safetensors but no index of its shards" in refused()


def test_an_index_of_shards_that_the_repository_lacks(hub, files):
    held = hub.repositories[ID].files
    del held["model.safetensors"]
    held |= sharded(files)
    del held["model-00002-of-00002.safetensors"]
    assert "index.json: names model-00002-of-00002.safetensors, which the repository lacks; give another" in refused()
    assert not [name for name in fetched(hub) if name.endswith(".safetensors")]


def test_what_the_hub_refuses_is_one_line_with_what_to_do(hub, monkeypatch):
    repository = hub.repositories[ID]
    line = refused("org/none")
    assert f"'org/none' is neither a local directory nor on the hub ({hub.url}/org/none); check the name, or," in line
    line = refused(revision="v9")
    assert f"'org/small' has no revision 'v9' on the hub; give a branch, tag or commit that {hub.url}/org/small" in line
    repository.gated = True
    assert f"is gated on the hub: accept its licence at {hub.url}/org/small, and set HF_TOKEN to a token" in refused()
    repository.gated, repository.hidden = False, True
    assert "if it is private, set HF_TOKEN to a token that may read it" in refused()
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert f"is refused by the hub (401): set HF_TOKEN to a token that may read {hub.url}/org/small" in refused()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    repository.gated = True
    assert source(ID).entries
    monkeypatch.delenv("HF_TOKEN")
    assert source(ID).entries  # what is in the cache needs no permission
    assert "is neither a local directory nor a hub id, OWNER/NAME" in refused("org/sm all")


def test_a_hub_that_does_not_answer(hub, monkeypatch):
    hub.broken = 503
    assert "and the hub does not answer (" in refused() and "check the network, or download it" in refused()
    hub.broken = 0
    directory = source(ID).directory
    hub.broken = 503
    assert source(ID).directory == directory  # from the cache
    (directory / "model.safetensors").unlink()
    line = refused()
    assert "the weights of 'org/small' are not all in this machine's hub cache, and the hub does not answer (" in line
    assert ModelSource.open(ID, weights=False).directory == directory


def test_offline_is_named_where_it_is_the_cause(hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    end = "and HF_HUB_OFFLINE keeps it from being downloaded; unset HF_HUB_OFFLINE, or download it elsewhere and give"
    assert f"model.path: 'org/small' is neither a local directory nor in this machine's hub cache, {end}" in refused()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    directory = ModelSource.open(ID, weights=False).directory
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert ModelSource.open(ID, weights=False).directory == directory
    assert f"the weights of 'org/small' are not all in this machine's hub cache, {end}" in refused()


def test_nobody_listens(hub, monkeypatch, files):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "and the hub does not answer (" in refused()
