"""Every key of every command, from the schema, so that a new one is tested when it is added; and keys together."""

import dataclasses
import math
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from schemas import SCHEMAS, keys

from starling_train import cli
from starling_train.cli.compose import configuration
from starling_train.config import conf_files
from starling_train.config.fields import UserError
from starling_train.config.ppo import PpoConfig
from starling_train.config.sections import check_reward

NUMBERED = [command for command in SCHEMAS if command != "export"]  # which has no number and no choice


def refusal(command: str, key: str, value: Any) -> str:
    """What the check says of a configuration that is right but for this key."""
    schema, check = SCHEMAS[command]
    config = section = schema()
    *sections, name = key.split(".")
    for part in sections:
        section = getattr(section, part)
    setattr(section, name, value)
    with pytest.raises(UserError) as told:
        check(config)
    message = str(told.value)
    assert "\n" not in message and len(message) < 500
    return message


@pytest.mark.parametrize("command", NUMBERED)
def test_a_number_is_refused_by_its_key_where_it_makes_no_sense(command):
    numbers = [key for key in keys(command) if "range" in key.field.metadata]
    assert len(numbers) > 10
    for key in numbers:
        low, high = key.field.metadata["range"]
        values = [10**400, -(10**400)] + ([] if key.whole else [math.nan, math.inf, -math.inf])
        values += [bound + step for bound, step in ((low, -1), (high, 1)) if bound is not None]
        for value in values:
            assert re.match(rf"{re.escape(key.name)}: .* is out of range; give ", refusal(command, key.name, value))


@pytest.mark.parametrize("command", NUMBERED)
def test_a_choice_is_refused_by_its_key_and_says_what_there_is(command):
    choices = [key for key in keys(command) if key.field.metadata.get("choices")]
    assert choices
    for key in choices:
        options = ", ".join("null" if one is None else one for one in key.field.metadata["choices"])
        said = refusal(command, key.name, "nonesuch")
        assert said == f"{key.name}: 'nonesuch' is not an option; use one of: {options}"


@pytest.mark.parametrize("command", NUMBERED)
def test_the_name_of_a_secret_is_never_the_secret(command):
    for key in keys(command):
        if "variable" in key.field.metadata:
            said = refusal(command, key.name, "hunter2")
            assert said.startswith(f"{key.name}: ") and "give its name" in said and "hunter2" not in said


def sections() -> dict[type, Any]:
    """Every section that a command has, and the commands' own: each once. Reading all of a command takes 20 ms."""
    whole = [schema() for schema, _ in SCHEMAS.values()]
    inner = [key.default for command in SCHEMAS for key in keys(command)]
    return {type(section): section for section in whole + inner if dataclasses.is_dataclass(section)}


@pytest.mark.parametrize("command", SCHEMAS)
def test_a_path_that_no_file_system_takes_is_told_by_its_key(command):
    for key in keys(command):
        if key.field.metadata.get("path"):
            assert refusal(command, key.name, "x" * 5000).startswith(f"{key.name}: ")


def misread(section: type, values: dict) -> str:
    """What is said of a file of settings that does not fit."""
    with pytest.raises(UserError) as told:
        cli.read_settings(values, section, Path("config.yaml"))
    message = str(told.value)
    assert message.startswith("run_dir: config.yaml ") and "\n" not in message
    return message


@pytest.mark.parametrize("section", sections(), ids=lambda section: section.__name__)
def test_a_key_that_is_mistyped_is_told_with_those_beside_it(section):
    beside = ", ".join(field.name for field in dataclasses.fields(section))
    assert f"nonesuch: no such key; use one of: {beside}" in misread(section, {"nonesuch": 1})


@pytest.mark.parametrize("section", sections(), ids=lambda section: section.__name__)
def test_a_value_of_another_kind_is_told_by_its_key(section):
    for name, default in vars(section()).items():
        wrong = "many" if isinstance(default, (int, float, list)) else {"a": ["b"]}
        if not isinstance(default, dict) and not dataclasses.is_dataclass(default):
            assert re.search(rf"\({name}[.:]", misread(section, {name: wrong})), name


def test_the_keys_of_a_term_are_checked_as_those_of_a_section():
    said = misread(PpoConfig, {"reward": {"terms": {"short": {"pth": "x"}}}})
    assert "reward.terms.short.pth: no such key; did you mean reward.terms.short.path? use one of: kind, path, " in said
    said = misread(PpoConfig, {"reward": {"terms": {"short": {"nonesuch": 1}}}})
    assert "reward.terms.short.nonesuch: no such key; use one of: kind, " in said and "weight" in said
    assert "(reward.terms.short.weight: " in misread(PpoConfig, {"reward": {"terms": {"short": {"weight": "many"}}}})
    assert "(reward.terms.short: " in misread(PpoConfig, {"reward": {"terms": {"short": 5}}})
    assert "(reward.terms: " in misread(PpoConfig, {"reward": {"terms": ["a"]}})


def test_the_terms_of_the_documented_recipe(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "scoring.md").read_text()
    recipe = text.partition("    reward:\n")[2].partition("\n\n")[0]
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "mine.yaml").write_text(textwrap.dedent(f"    reward:\n{recipe}\n"))
    given = ["-cd", str(tmp_path), "+recipe=mine", "reward.terms.truth.weight=0.25"]
    reward = configuration(given).reward
    check_reward(reward)
    assert (reward.kind, reward.terms["model"].scale, reward.terms["truth"].weight) == ("terms", "running", 0.25)
    assert [term.kind for term in reward.terms.values()] == ["starling_34b", "function"]


def test_runs_may_be_compared_by_a_term():
    given = ["model.path=m", "data.path=d", "reward=terms", f"{TERM}kind=function", f"{TERM}function=a:b"]
    schema, check = SCHEMAS["compare"]
    check(configuration([*given, "compare.skills=[eval/score_short]"], schema, "compare"))
    with pytest.raises(UserError, match=r"compare.skills: eval/score_shrt is not evaluated"):
        check(configuration([*given, "compare.skills=[eval/score_shrt]"], schema, "compare"))


def test_terms_are_given_on_the_command_line_with_or_without_a_plus():
    given = ["reward=terms", "+reward.terms.short.kind=function", "reward.terms.short.function=mine.py:score"]
    reward = configuration([*given, "+reward.terms.short.arguments.most=9", "reward.terms.short.weight=-0.5"]).reward
    term = reward.terms["short"]
    assert (reward.kind, term.kind, term.function, term.weight) == ("terms", "function", "mine.py:score", -0.5)
    assert term.arguments == {"most": 9} and (term.scale, reward.scale) == ("none", "running")
    with pytest.raises(UserError, match=r"reward.terms.short: is a section and takes no value; set one of its keys: "):
        configuration([*given, "reward.terms.short=function"])
    text = conf_files.described(reward)
    assert OmegaConf.create(text).terms.short.function == "mine.py:score"


GUARD = "guard.skills=[eval/gold_mean:0.5] evaluation.functions.gold=a:b"
SERVED = "reward.kind=server reward.url=http://"
TERM = "reward.terms.short."
TERMS = f"reward.kind=terms {TERM}kind=function {TERM}function=a:b"
LORA = "freeze.adapter=lora freeze.norms=false freeze.embeddings=false "
GROUPS = "algorithm.name=grpo algorithm.responses_per_prompt=4 algorithm.critic=none "
OF_MT_BENCH = "suites=[mt_bench] mt_bench.path=here mt_bench.judge.model=m "

# command -> (what is set, what the line begins with, and what else it says)
AGAINST_EACH_OTHER = {
    "ppo rm dpo plan laser": (("model.path=''", "model.path: not set; give"),),
    "ppo rm dpo": (
        ("data.path=''", "data.path: not set; give"),
        ("name=' '", "name: empty", "give"),
        ("freeze.method=snr freeze.top_percent=0", "freeze.top_percent: 0 selects nothing"),
        ("freeze.method=layers", "freeze.layers: empty", "give layer numbers"),
        ("logging.trackers=[tensorbord]", "logging.trackers: 'tensorbord' is not", "did you mean tensorboard? "),
        ("logging.trackers=[wandb,chess]", "logging.trackers: 'chess' is not an option", "use some of: wandb, tensorb"),
        ("optim.betas=[0.9]", "optim.betas: ", "give two numbers"),
        ("optim.betas=[0.9,1.0]", "optim.betas: ", "give two numbers"),
        (f"{LORA} freeze.norms=true", "freeze.norms: adapters are for matrices", "leave it out"),
        (f"{LORA} freeze.embeddings=true", "freeze.embeddings: adapters are for matrices", "leave it out"),
        (f"{LORA} freeze.max_trainable=9", "freeze.max_trainable: ", "freeze.top_percent"),
    ),
    "snr plan": (("freeze.method=layers", "freeze.layers: empty", "give layer numbers"),),
    "ppo score serve_reward": (("reward.path=''", "reward.path: not set; give"),),
    "ppo dpo": (
        ("evaluation.suites=[chess]", "evaluation.suites: 'chess'", "use some of"),
        ("evaluation.suites=[function_calling]", "evaluation.function_calling.path: not set; give"),
        ("evaluation.functions.gold=nocolon", "evaluation.functions.gold: ", "package.module:function"),
        ("rollout.stop_strings=['']", "rollout.stop_strings: ", "leave it out"),
        ("rollout.engine=vllm_server", "rollout.url: not set; give the address of a vLLM server"),
        ("rollout.engine=vllm_server rollout.url=http://me:hunter2@h", "rollout.url: it holds", "rollout.token_env"),
        ("rollout.engine=vllm_server rollout.url=h:8000", "rollout.url: 'h:8000' is not an address", "give http://HOST:PORT"),
        ("rollout.correction=2", "rollout.correction: slots draws from the weights that train", "leave it out"),
        ("rollout.engine=vllm rollout.correction=0.5", "rollout.correction: 0.5 is out of range", "give"),
        ("rollout.engine=vlm", "rollout.engine: 'vlm' is not an option", "did you mean vllm"),
        ("model.load_in=4bit", "model.load_in: weights in 4bit cannot train", "use freeze.adapter=lora"),
        (f"{LORA} model.load_in=4bit cluster.zero_stage=3", "model.load_in: quantised", "zero_stage=2"),
        (f"{GUARD} evaluation.every=0", "guard.skills: evaluation.every=0 measures no skill", "give"),
    ),
    "ppo score compare": (
        ("reward.kind=function", "reward.function: not set; give package.module:name"),
        ("reward.kind=function reward.function=mine", "reward.function: 'mine'", "package.module:name or FILE.py:name"),
        ("reward.function=mine.py:score", "reward.function: set, but reward.kind=starling_7b", "use reward=function"),
        ("reward.arguments.x=1", "reward.arguments: set, but reward.kind=starling_7b", "use reward=function"),
        ("reward.kind=terms", "reward.terms: not set; give terms with a kind each"),
        (f"{TERM}kind=function", "reward.terms: set, but reward.kind=starling_7b does not", "use reward=terms"),
        (f"reward.kind=terms {TERM}function=a:b", "reward.terms.short.kind: '' is not an option", "use one of: starl"),
        (f"{TERMS} reward.offload=true", "reward.offload: set, but reward.kind=terms", "reward.terms.NAME.offload"),
        (f"{TERMS} {TERM}function=mine", "reward.terms.short.function: 'mine'", "package.module:name or FILE.py:name"),
        (f"{TERMS} {TERM}offload=true", "reward.terms.short.offload: set, but reward.terms.short.kind=function"),
        (f"{TERMS} {TERM}kind=server", "reward.terms.short.function: set, but reward.terms.short.kind=server",
         "use reward.terms.short.kind=function"),
        (f"{TERMS} {TERM}scale=runing", "reward.terms.short.scale: 'runing' is not an option; did you mean running? "),
        (f"{TERMS} {TERM}weight=.nan", "reward.terms.short.weight: nan is out of range; give"),
        (f"{TERMS} {TERM}token_env=hunter2", "reward.terms.short.token_env: ", "give its name"),
        (f"{TERMS} reward.terms.m.kind=starling_7b", "reward.terms.m.path: not set; give the reward model"),
        (f"{TERMS} reward.terms.m.kind=server reward.terms.m.url=http://me:hunter2@h", "reward.terms.m.url: it holds",
         "reward.terms.m.token_env"),
        (f"{TERMS} reward.terms.m.kind=starling_34b reward.terms.m.path=x reward.terms.m.position=card",
         "reward.terms.m.position: card", "use last_token"),
        (f"{TERMS} reward.terms.mean.kind=function reward.terms.mean.function=a:b", "reward.terms: 'mean' cannot be"),
    ),
    "ppo": (
        ("algorithm.name=apa algorithm.clip_high=0.3", "algorithm.clip_high: apa has no ratio", "leave it out"),
        ("algorithm.scale_by_group=false", "algorithm.scale_by_group: ppo does not scale", "leave it out"),
        ("algorithm.name=apa rollout.engine=vllm rollout.correction=2", "rollout.correction: apa", "leave it out"),
        ("reward.kind=starling_34b reward.position=card", "reward.position: card", "use last_token"),
        ("reward.trailing_newline=true", "reward.trailing_newline: ", "use false"),
        ("reward.max_length=12", "reward.max_length: 12 leaves no room", "raise it"),
        (f"{TERMS} reward.terms.m.kind=starling_7b reward.terms.m.path=x reward.terms.m.max_length=12",
         "reward.terms.m.max_length: 12 leaves no room", "raise it"),
        ("reward.offload=true reward.load_in=4bit", "reward.offload: reward.load_in=4bit needs", "use one of the two"),
        ("reward.offload=true reward.device_map=auto", "reward.offload: reward.device_map=auto", "use one of the two"),
        (f"{SERVED}h reward.offload=true", "reward.offload: set, but reward.kind=server", "leave it out"),
        ("reward.kind=server", "reward.url: not set; give"),
        ("reward.kind=server reward.url=localhost:8000", "reward.url: 'localhost:8000' is not an address", "give http://"),
        ("reward.kind=server reward.url=ftp://host", "reward.url: 'ftp://host' is not an address", "give http://"),
        (SERVED, "reward.url: ", "give http://"),
        (f"{SERVED}host:99999", "reward.url: ", "give http://"),
        (f"{SERVED}host/?token=x", "reward.url: has something after", "reward.token_env"),
        (f"{SERVED}me:hunter2@host", "reward.url: it holds a user name", "reward.token_env"),
        (f"{SERVED}h reward.protocol=openrlhf", "reward.tokenizer: not set", "template"),
        (f"{SERVED}h reward.protocol=vllm", "reward.tokenizer: not set", "give the directory of the served model"),
        (f"{SERVED}h reward.served_model=x", "reward.served_model: reward.protocol=starling has", "leave it out"),
        (f"{SERVED}h reward.token_header='a b'", "reward.token_header: 'a b' is not", "give Author"),
        ("algorithm.minibatches=65", "algorithm.minibatches: 65 exceeds", "lower it"),
        ("rollout.min_new_tokens=13 rollout.max_new_tokens=12", "rollout.min_new_tokens: 13 exceeds", "lower it"),
        ("algorithm.critic_warmup_steps=1000", "algorithm.critic_warmup_steps: 1000", "lower it"),
        ("algorithm.kl.target=6 algorithm.kl.coefficient=0", "algorithm.kl.coefficient: 0", "start above 0"),
        ("algorithm.name=grpo algorithm.critic=none", "algorithm.responses_per_prompt: grpo compares", "2 or more"),
        (f"{GROUPS}algorithm.critic=head", "algorithm.critic: grpo has no use for head", "critic=none"),
        ("algorithm.critic=none", "algorithm.critic: ppo needs one", "algorithm=rloo or grpo"),
        ("algorithm.name=apa algorithm.critic=none", "algorithm.critic: apa needs one", "take head"),
        (f"{GROUPS}algorithm.critic_warmup_steps=2", "algorithm.critic_warmup_steps: there is no critic", "leave it"),
        (f"{GROUPS}algorithm.kl.where=loss", "algorithm.kl.estimator: the gradient of k1", "k2 or k3"),
        ("algorithm.kl.where=loss", "algorithm.kl.estimator: the gradient of k1", "algorithm.kl.where=reward"),
        (f"{GROUPS}algorithm.minibatches=257",
         "algorithm.minibatches: 257 exceeds algorithm.prompts_per_step * algorithm.responses_per_prompt = 256; lower"),
        (f"{LORA} freeze.lora.dropout=0.1", "freeze.lora.dropout: ", "use 0"),
        (f"{LORA} algorithm.critic=separate", "algorithm.critic: separate", "use head"),
        (f"{LORA} model.load_in=8bit", "model.load_in: bitsandbytes' 8-bit products", "use 4bit"),
        (f"{GUARD} guard.then=anchor algorithm.kl.coefficient=1", "guard.most: 1 is not above algorithm", "give more"),
    ),
    "ppo dpo rm": (("cluster.offload=optimizer optim.eight_bit=true", "cluster.offload: optim", "use one of both"),),
    "ppo dpo compare": (
        ("guard.skills=[eval/function_calling]", "guard.skills: 'eval/function_calling' is not METRIC:POINTS", "ing:3"),
        ("guard.skills=[eval/x:many]", "guard.skills: 'eval/x:many' is not METRIC:POINTS", "give for example eval/x:3"),
        ("guard.skills=[eval/x:-1]", "guard.skills: 'eval/x:-1' is not METRIC:POINTS", "give"),
        ("guard.skills=[eval/x:nan]", "guard.skills: 'eval/x:nan' is not METRIC:POINTS", "give"),
        ("guard.skills=[eval/x:1,eval/x:2]", "guard.skills: eval/x is there twice", "leave one"),
        ("guard.skills=[eval/perplexity:1]", "guard.skills: eval/perplexity is not measured", "evaluation.suites"),
        ("guard.skills=[eval/god_mean:1] evaluation.functions.gold=a:b", "guard.skills: eval/god_mean is not measured",
         "did you mean eval/gold_mean? ", "use some of: eval/gold_mean"),
        (f"{GUARD} guard.then=anchor guard.least=2", "guard.most: 1 is below guard.least=2", "raise it"),
    ),
    "rm": (
        ("model.load_in=4bit", "model.load_in: ", "leave it out"),
        ("rm.fresh=true freeze.method=snr", "rm.fresh: ", "use freeze=none"),
        (f"rm.fresh=true {LORA}", "rm.fresh: freeze.adapter would freeze random weights", "without an adapter"),
        ("rm.trailing_newline=true", "rm.trailing_newline: ", "starling_34b"),
    ),
    "dpo": (
        ("dpo.max_length=1024", "dpo.max_length: 1024 leaves no room", "raise it"),
        ("dpo.label_smoothing=0.5", "dpo.label_smoothing: ", "give less"),
        ("dpo.loss=ipo dpo.label_smoothing=0.1", "dpo.label_smoothing: ", "use 0"),
        ("evaluation.responses=999", "evaluation.responses: 999 exceeds", "lower it"),
        (f"{GUARD} evaluation.responses=0", "guard.skills: eval/gold_mean is of answers", "raise it"),
    ),
    "plan": (("plan.processes=65", "plan.processes: 65 exceeds algorithm.prompts_per_step=64", "lower"),),
    "score": (("output=x", "input: not set; give"), ("input=x", "output: not set; give")),
    "serve_reward": (
        ("reward.kind=server reward.url=http://h", "reward.kind: a server", "give the kind"),
        (f"reward.kind=terms {TERM}kind=function {TERM}function=a:b", "reward.kind: a sum of terms is not", "give the"),
    ),
    "evaluate": (
        ("suites=[preference] preference.path=x reward.path=''", "reward.path: not set; give"),
        ("suites=[chess]", "suites: 'chess'", "use some of"),
        ("suites=[]", "suites: none", "give"),
        ("suites=[preference]", "preference.path: not set; give"),
        ("suites=[function_calling]", "function_calling.path: not set; give"),
        ("suites=[function_calling] function_calling.path=x model.path=''", "model.path: not set; give"),
        ("suites=[reward] data.path=''", "reward_suite.path: not set", "give prompts"),
        ("suites=[reward] reward_suite.base=''", "reward_suite.base: empty", "or null"),
        ("suites=[perplexity]", "perplexity.path: not set; give a text file"),
        ("suites=[mt_bench] mt_bench.judge.model=m", "mt_bench.path: not set", "question.jsonl"),
        ("suites=[mt_bench] mt_bench.path=here", "mt_bench.judge.model: not set; give"),
        (f"{OF_MT_BENCH} mt_bench.judge.url=gpt", "mt_bench.judge.url: 'gpt' is not an address", "http://HOST:PORT"),
        (f"{OF_MT_BENCH} mt_bench.judge.url=http://me:hunter2@h/v1", "mt_bench.judge.url: it holds", "key_env"),
        (f"{OF_MT_BENCH} mt_bench.judge.key_header='a b'", "mt_bench.judge.key_header: 'a b' is not", "give Author"),
        (f"{OF_MT_BENCH} mt_bench.judge.prompt_price=3", "mt_bench.judge.completion_price: not set", "both"),
        ("suites=[lm_eval]", "lm_eval.tasks: none", "give some"),
    ),
    "laser": (
        ("model.load_in=4bit", "model.load_in: a 4bit model", "use null"),
        ("laser.percent=0", "laser.percent: 0 selects nothing", "give"),
        ("laser.measure=perplexity perplexity.path=null", "perplexity.path: not set; give"),
        ("laser.measure=preference_share preference.path=null", "preference.path: not set; give"),
    ),
    "export": (
        ("output=x", "run_dir: not set; give"),
        ("run_dir=x", "output: not set; give"),
        *((f"run_dir=x output=x {key}={'x' * 5000}", f"{key}: ", "cannot be a path", "give")
          for key in ("run_dir", "output")),
    ),
    "compare": (
        ("compare.only=[luck]", "compare.only: there is no strategy 'luck'; use ", "or add one"),
        ("compare.reference=luck", "compare.reference: there is no strategy 'luck'; use "),
        ("compare.skills=[]", "compare.skills: empty; give"),
        ("compare.search=[0.001,0]", "compare.search: 0.0 is not a learning rate; give numbers above 0"),
        ("compare.search=[0.001,1e-3]", "compare.search: a learning rate is there twice"),
        ("compare.search=[0.001] compare.first_seed=998 compare.seeds=4",
         "compare.search_first_seed: seed 1000 would be searched with and compared; give at least 1002"),
        ("evaluation.every=0", "evaluation.every: 0", "give"),
        ("compare.skills=[eval/function_calling]", "compare.skills: eval/function_calling is not evaluated; add to"),
        ("compare.reward=eval/kl_reference", "compare.reward: of eval/kl_reference less is better", "compare.skills"),
        ("compare.skills=[eval/length_mean] compare.reward=eval/gold_mean",
         "compare.reward: eval/gold_mean is not evaluated", "evaluation.functions"),
        ("compare.strategies.{a/b}=[]", "compare.strategies: 'a/b'", "use letters"),
    ),
}  # fmt: skip


def refused_together() -> list:
    rows = [(command, row) for names, rows in AGAINST_EACH_OTHER.items() for command in names.split() for row in rows]
    return [pytest.param(command, *row[:2], row[2:], id=f"{command} {row[0][:60]}") for command, row in rows]


@pytest.mark.parametrize("command,settings,begins,says", refused_together())
def test_keys_that_do_not_fit_together_are_told_by_the_one_to_change(command, settings, begins, says):
    schema, check = SCHEMAS[command]
    values = OmegaConf.from_dotlist(re.findall(r"(?:[^\s']|'[^']*')+", settings))
    if "{a/b}" in settings:
        values = OmegaConf.create({"compare": {"strategies": {"a/b": []}}})
    config = cli.typed(values, schema)
    with pytest.raises(UserError) as told:
        check(config)
    message = str(told.value)
    assert message.startswith(begins) and all(part in message for part in says), message
    assert "\n" not in message and "hunter2" not in message
