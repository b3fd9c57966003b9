"""The memory plan against sums that were done by hand."""

import pytest

from starling_train.config.sections import FreezeConfig, LoraConfig
from starling_train.planning.memory import Judge, MemoryPlan, Share, TrainingJob, plan, plan_supervised
from starling_train.planning.shapes import KNOWN_POLICIES, KNOWN_REWARD_MODELS, Shape
from starling_train.planning.what_trains import what_trains_of
from starling_train.selection import freeze

# 2 layers: q 8x8, k and v 4x8, o 8x8 = 192; gate, up, down 16x8 = 384; so 576 a layer, norms 2 x 8; 10 tokens
TINY = Shape(hidden=8, intermediate=16, layers=2, heads=2, kv_heads=1, vocabulary=10)


def job(**changes) -> TrainingJob:
    values = {
        "parameters": 1352, "trainable": 576, "dtype": "float32", "critic": "head", "slots": 2, "sequence_tokens": 20,
        "prompt_tokens": 10, "step_tokens": 80, "minibatch_tokens": 40, "tokens_per_microbatch": 20,
        "layers_above_lowest": 1, "layers_trained": 1,
    }  # fmt: skip
    return TrainingJob(**(values | changes))


def test_shapes_of_published_models():
    assert TINY.layer_parameters() == 576
    assert TINY.decoder_parameters() == 2 * (576 + 16) + 80 + 8
    assert TINY.parameters() == 1352
    assert KNOWN_POLICIES["openchat/openchat-3.5-0106"].parameters() == 7_241_748_480
    assert KNOWN_REWARD_MODELS["starling_7b"].decoder_parameters() == 6_607_343_616


def test_what_is_held_in_float32():
    held = plan(TINY, [], job()).held
    # value head: 2 x 64 + 4 x 8 + 1 = 161; moments 8 bytes, no master copies
    assert list(held.values()) == [1352 * 4, 576 * 4, 161 * 4, 576 * 8 + 161 * 8, 0]


def test_what_is_held_in_bfloat16_with_a_twin():
    held = plan(TINY, [Judge(TINY, load_in="8bit", tokens=40)], job(dtype="bfloat16", critic="twin")).held
    assert list(held.values()) == [1352 * 2, 576 * 2, 576 * 2 + 161 * 4, 2 * 576 * 12 + 161 * 8, 1272]


def test_adapters_lie_beside_a_base_in_four_bits():
    held = plan(TINY, [], job(dtype="bfloat16", trainable=100, adapter=True, load_in="4bit")).held
    # 2 layers x 576 weights at 0.55 bytes; 1352 - 1152 embeddings, head and norms, at 2, adapters at 4
    assert list(held.values())[:2] == [1152 * 0.55 + 200 * 2 + 100 * 4, 0.0]


def test_dpo_holds_one_policy():
    values = {
        "parameters": 1352, "trainable": 576, "dtype": "bfloat16", "minibatch_tokens": 40, "tokens_per_microbatch": 20,
        "layers_above_lowest": 1, "slots": 2, "prompt_tokens": 10, "sequence_tokens": 20,
    }  # fmt: skip
    found = plan_supervised(TINY, TrainingJob(**values))
    assert list(found.held.values()) == [1352 * 2, 576 * 12]  # weights; moments and master copies
    # keys and values of 2 slots x 20 tokens, 512 on a GPU, 2 layers x 2 x 4 numbers of 2 bytes
    assert found.rollout["KV cache"] == 2 * 512 * 2 * 2 * 4 * 2
    assert found.update["gradients"] == 576 * 2 and found.update["logits, one chunk"] == 3 * 40 * 10 * 4
    alone = plan_supervised(TINY, TrainingJob(**values | {"slots": 0, "tokens_per_microbatch": 80}))
    assert alone.rollout == {} and alone.update["activations"] == 2 * found.update["activations"]  # 80 tokens, not 40


def test_what_is_in_host_memory_is_not_on_the_gpu():
    # float32 copies and two moments of 576 + 161 numbers; gradients on their way in bfloat16, and in float32 there
    on_device, away = (
        plan(TINY, [Judge(TINY, tokens=40, offloaded=offloaded)], job(dtype="bfloat16", optimizer_offloaded=offloaded))
        for offloaded in (False, True)
    )
    assert away.held | {"optimizer: moments, master copies": 0.0, "reward model": 0.0} == away.held
    assert list(away.host.values()) == [737 * 12, 737 * (2 + 4), 1272 * 2] and on_device.host == {}
    # 1,272 weights of the reward model lie beside its activations, and nowhere else
    assert away.scoring["reward model, while it scores"] == 1272 * 2
    assert away.step["gradients"] == 576 * 2 + 161 * 4 and "some of them in float32" not in away.step
    assert "in host memory: reward model" in away.render() and away.total < on_device.total


def test_in_shards_each_host_has_its_share():
    found = plan(TINY, [], job(dtype="bfloat16", optimizer_offloaded=True), Share(4, 2))
    assert list(found.host.values()) == [737 * 12 / 4, 737 * (4 + 2) / 4]
    assert found.held["optimizer: moments, master copies"] == 0 and found.step["gradients"] == 737 * 2 / 4
    whole = plan_supervised(TINY, job(dtype="bfloat16", optimizer_offloaded=True))
    assert list(whole.host.values()) == [576 * 12, 576 * (2 + 4)]


def test_a_cpu_has_one_memory():
    """What is offloaded there stays in it, twice where it is copied."""
    judge = Judge(TINY, dtype="float32", tokens=40, offloaded=True)
    found = plan(TINY, [judge], job(device="cpu", optimizer_offloaded=True))
    assert found.host == {} and found.held["optimizer: moments, master copies"] == 737 * (12 + 4)
    assert found.held["reward model"] == found.scoring["reward model, while it scores"] == 1272 * 4


def test_two_reward_models_are_both_held_and_score_one_after_the_other():
    """1272 parameters each: one in 2 bytes on the GPU, one in 4 in host memory and on the GPU while it scores."""
    judges = [Judge(TINY, "kind", tokens=40), Judge(TINY, "true", dtype="float32", tokens=40, offloaded=True)]
    found = plan(TINY, judges, job(dtype="bfloat16"))
    assert (found.held["reward model kind"], found.held["reward model true"]) == (1272 * 2, 0.0)
    assert found.host == {"reward model true": 1272 * 4}
    assert found.scoring["reward model true, while it scores"] == 1272 * 4
    # 40 tokens of the larger one, in 4 bytes, and not those of both
    assert found.scoring["activations"] == 40 * TINY.forward() * 4


def test_vllm_has_all_weights_once_more_and_sleeps_on_a_gpu_while_others_work():
    there = {"engine": "vllm", "cache": 5e6}
    found = plan(TINY, [], job(**there))
    copied = {"vLLM's copy of the weights": 1352 * 4, "vLLM's keys and values": 5e6}
    assert found.rollout == copied and found.host == {"vLLM's copy of the weights, asleep": 1352 * 4}
    here = plan(TINY, [], job(**there, device="cpu"))
    assert here.rollout == {} and here.host == {} and copied.items() <= here.held.items()
    served = plan(TINY, [], job(engine="vllm_server"))
    assert served.rollout == {} and served.held == plan(TINY, [], job()).held


def test_phases():
    found = plan(TINY, [], job())
    assert found.rollout["KV cache"] == 2 * 512 * (2 * 2 * 1 * 4) * 4  # positions in multiples of 512
    assert found.scoring["prefix cache"] == 80 * 8 * 4
    # two micro-batches: gradients and activations at once, and a gradient to be added
    assert found.update["gradients"] == 576 * 4 + 161 * 4
    assert found.update["a gradient to be added"] == 8 * 16 * 4
    # one layer, half of the tokens responses: norms 64, attention 96, MLP 192, inputs 160, less half of 192 + 96;
    # passing 256; norm, head and value head 128 + 64 + 160 numbers... in bytes: 32 + 64 + 160 for half of the tokens
    assert found.update["activations"] == 20 * (64 + 96 + 192 + 160 - 144 + 256 + (32 + 64 + 160) / 2)
    assert found.step["gradients, float32"] == (576 + 161) * 4


def test_a_rollout_on_a_cpu_packs_a_second_copy_of_the_weights_in_bfloat16():
    base = KNOWN_POLICIES["openchat/openchat-3.5-0106"]
    given = {"parameters": base.parameters(), "dtype": "bfloat16", "device": "cpu"}
    name = "weights packed for products, at most"
    # 32 layers of q, o 4096 x 4096, k, v 1024 x 4096 and three of 14336 x 4096; the head 32002 x 4096; 2 bytes
    layer = 2 * 4096 * 4096 + 2 * 1024 * 4096 + 3 * 14336 * 4096
    assert plan(base, [], job(**given)).rollout[name] == 2 * (32 * layer + 32002 * 4096)
    for other in ({"dtype": "float32"}, {"device": "cuda"}, {"parameters": 4 * 10**6}, {"load_in": "4bit"}):
        assert name not in plan(base, [], job(**(given | other))).rollout


def test_one_micro_batch_has_activations_before_gradients():
    several, one = plan(TINY, [], job()), plan(TINY, [], job(tokens_per_microbatch=40))
    assert "a gradient to be added" not in one.update
    assert one.update["activations"] == 2 * several.update["activations"]
    assert one.update["gradients"] == 0  # head: they are fewer bytes than the activations that they replace


def test_stages_share_among_processes():
    four = [plan(TINY, [], job(), Share(4, stage)) for stage in range(4)]
    held = [list(found.held.values()) for found in four]
    assert held[0] == list(plan(TINY, [], job()).held.values())
    assert held[1][3] == (576 + 161) * 12 / 4  # DeepSpeed copies float32 too
    assert four[1].update["gradients"] == (576 + 161) * 4 and four[2].update["gradients"] == (576 + 161) * 4 / 4
    assert held[3][0] == 1352 * 4 / 4
    assert four[3].rollout["weights of the other processes"] == (1352 + 576) * 4 * 3 / 4


def test_a_gpu_fills_one_buffer_of_gradients_while_another_travels():
    # 576 + 161 numbers of 4 bytes; stage 3 exchanges from one buffer, gloo waits
    exchange = [
        plan(TINY, [], job(device=device), Share(4, stage)).update["exchange with other processes"] / (737 * 4)
        for device, stage in (("cuda", 1), ("cuda", 2), ("cuda", 3), ("cpu", 2))
    ]
    assert exchange == [2, 2, 1, 1]


def test_the_peak_is_held_and_the_largest_phase():
    assert MemoryPlan({"a": 5}, {"b": 1}, {"c": 2, "d": 2}, {"e": 3}, {"f": 1}).total == 9


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "random", "top_percent": 50.0},
        {"method": "last_layers", "last_layers": 2, "head": True, "norms": True},
        {"method": "layers", "layers": [1]},
        {"method": "none"},
        {"method": "random", "top_percent": 40.0, "lowest_layer": 1, "embeddings": True},
        {"method": "random", "top_percent": 50.0, "head": True, "adapter": "lora", "lora": LoraConfig(rank=3)},
        {"method": "none", "adapter": "lora", "lora": LoraConfig(rank=2)},
    ],
)
def test_the_table_is_that_of_the_model_itself(settings, tiny_mistral):
    from starling_train.selection.records import Record
    from starling_train.selection.select import select

    model = tiny_mistral(4)
    config = FreezeConfig(**settings)
    shape = Shape.of(model.config)
    found = what_trains_of(config, shape.config(), 0)
    records = {
        name: Record(name, ".".join(name.split(".")[-2:]), tuple(module.weight.shape))
        for name, module in model.named_modules()
        if name.endswith("_proj")
    }
    real = freeze.apply(config, model, select(config, records, 0))
    assert (found.parameters_trained, found.parameters_of) == (real.parameters_trained, real.parameters_of)
    assert found.lowest_layer == real.lowest_layer
    assert found.total.trained == real.total.trained and found.total.of == real.total.of
