"""A reward that is a Python function: what it is called with, what it may give, and what is said of what it may not."""

import math
import re
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from starling_train.config.fields import UserError
from starling_train.config.sections import RewardConfig, check_reward
from starling_train.rewards import function, kinds
from starling_train.rewards.user_function import UserFunction

ASKED = [[{"role": "user", "content": f"What is {i}?"}, {"role": "assistant", "content": "a" * i}] for i in range(4)]


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Writes a function's file here; gives the configuration that names it."""
    monkeypatch.chdir(tmp_path)

    def write(text: str, **arguments) -> RewardConfig:
        (tmp_path / "mine.py").write_text(text)
        return RewardConfig(kind="function", path="", function="mine.py:score", arguments=arguments)

    return write


def scores(config: RewardConfig, columns=None, asked=ASKED) -> list[float]:
    check_reward(config)
    kind = kinds.of(config)
    kind.check(config, True)
    return kind.load(config, None).score(asked, columns)


def refusal(config: RewardConfig, columns=None) -> str:
    with pytest.raises(UserError) as told:
        scores(config, columns)
    assert "\n" not in str(told.value)
    return str(told.value)


def test_it_is_called_with_whole_conversations(written):
    config = written("def score(asked):\n    return [len(c[-1]['content']) + 10 * len(c) for c in asked]\n")
    assert scores(config) == [20.0, 21.0, 22.0, 23.0]
    assert scores(config, asked=[]) == []


def test_a_function_that_is_built_into_python_has_no_text():
    found = UserFunction.find(RewardConfig(kind="function", path="", function="math:fsum"))
    assert found.file is None and found.identity()["sha256"] is None
    counted = UserFunction.find(RewardConfig(kind="function", path="", function="builtins:len"))
    assert counted.call is len and counted.file is None and counted.columns == ()


def test_what_it_does_to_the_messages_stays_with_it(written):
    config = written("def score(asked):\n    for c in asked: c.pop()['content'] = ''\n    return [1] * len(asked)\n")
    before = [[dict(message) for message in messages] for messages in ASKED]
    assert scores(config) == [1.0] * 4 and before == ASKED


def test_arguments_and_columns_come_by_name(written):
    text = (
        "def score(asked, truth, *, factor, level=7, other=1):\n"
        "    return [factor * (t or 0) + (level if level == 7 else sum(level)) + other for t in truth]\n"
    )
    config = written(text, factor=100)
    columns = [{"truth": 1}, {"truth": 2}, {"truth": None}, {"truth": 4}]
    assert scores(config, columns) == [108.0, 208.0, 8.0, 408.0]
    leveled = [row | {"level": 5} for row in columns]
    assert scores(config, leveled) == [121.0, 221.0, 21.0, 421.0]
    assert function.columns(config) == ("truth", "level", "other")
    assert function.columns(written(text, factor=1, level=2)) == ("truth", "other")  # what is given is not asked for


def test_a_function_of_any_arguments_gets_those_of_the_configuration(written):
    config = written("def score(asked, **all): return [all['x']] * len(asked)\n", x=3)
    assert scores(config, [{"y": 1}] * 4) == [3.0] * 4 and function.columns(config) == ()


def test_any_kind_of_number_is_one(written):
    config = written(
        "import numpy as np, torch\nfrom decimal import Decimal\nfrom fractions import Fraction\n"
        "GIVEN = [True, 2, 2.5, Decimal('0.5'), Fraction(1, 4), np.float32(1.5), np.int64(3), np.bool_(False),\n"
        "         torch.tensor(0.5, requires_grad=True), torch.tensor([4.0]), np.array(7)]\n"
        "def score(asked): return GIVEN\n"
    )
    asked = [ASKED[0]] * 11
    assert scores(config, asked=asked) == [1, 2, 2.5, 0.5, 0.25, 1.5, 3, 0, 0.5, 4, 7]
    assert (Decimal("0.5"), Fraction(1, 4), np.float32(1.5)) == (0.5, 0.25, 1.5)


@pytest.mark.parametrize(
    "made",
    [
        "np.arange(4)", "torch.arange(4.0)", "torch.arange(4).bfloat16()[:, None]", "tuple(range(4))",
        "(i for i in range(4))",
    ],
)  # fmt: skip
def test_any_row_of_numbers_is_a_list(written, made):
    assert scores(written(f"import numpy as np, torch\ndef score(asked): return {made}\n")) == [0, 1, 2, 3]


def test_none_and_what_is_not_finite_are_answers_without_a_score(written):
    config = written("def score(asked): return [None, float('nan'), -float('inf'), 10 ** 400]\n")
    assert all(map(math.isnan, scores(config)))
    each = function.load(config).score_each(ASKED)
    assert all("gave no score" in str(error) for error in each) and len(each) == 4


GIVES = [
    ("[1, 2, 3]", "gave 3 scores for 4 conversations"),
    ("[]", "gave 0 scores for 4"),
    ("None", "gave a NoneType;"),
    ("2.5", "gave a float;"),
    ("'1234'", "gave a str;"),
    ("{1: 2}", "gave a dict;"),
    ("{1, 2, 3, 4}", "gave a set;"),
    ("[1, 2, '3', 4]", r"gave '3' \(a str\) for conversation 2"),
    ("[1, [2], 3, 4]", r"gave \[2\] \(a list\) for conversation 1"),
    ("[1, 2, 3, 1j]", r"gave 1j \(a complex\) for conversation 3"),
    ("torch.zeros(4, 2)", "gave a Tensor of several numbers for conversation 0"),
    ("np.array(['a', 'b', 'c', 'd'])", r"gave 'a' \(a str\) for conversation 0"),
]


@pytest.mark.parametrize(("given", "said"), GIVES, ids=[given for given, _ in GIVES])
def test_what_is_no_list_of_numbers_is_told_with_the_first_wrong_one(written, given, said):
    line = refusal(written(f"import numpy as np, torch\ndef score(asked): return {given}\n"))
    assert re.search(rf"^reward.function: mine.py:score {said}", line) and "a number or None for each" in line


def test_what_it_raises_names_the_conversation_its_words_and_the_line(written):
    config = written("def score(asked):\n    return [1 / (len(c[-1]['content']) - 2) for c in asked]\n")
    with pytest.raises(UserError) as told:
        scores(config)
    assert re.fullmatch(
        r"reward.function: mine.py:score raised ZeroDivisionError: (float )?division by zero for conversation 2, "
        r"'What is 2\?' \(mine.py:2\); debug=true shows its traceback",
        str(told.value),
    )
    assert isinstance(told.value.__cause__, ZeroDivisionError)  # its own traceback follows under debug=true


def test_what_it_raises_for_all_of_them_together_is_told_so(written):
    line = refusal(written("def score(asked):\n    assert len(asked) < 3, 'too\\nmany'\n    return [0] * len(asked)\n"))
    assert "raised AssertionError: too somewhere in conversations 0 to 3 (mine.py:2)" in line
    assert "raised SystemExit" in refusal(written("import sys\ndef score(asked): sys.exit(3)\n"))


def test_a_stop_of_the_run_is_not_taken_for_its_error(written):
    config = written("class Stop(BaseException): pass\ndef score(asked): raise Stop\n")
    with pytest.raises(BaseException) as told:
        scores(config)
    assert type(told.value).__name__ == "Stop"


TAKES = [
    ("def score(asked): pass", {"x": 1}, r"^reward.arguments.x: mine.py:score does not take it; it takes nothing but"),
    ("def score(asked, y=1): pass", {"x": 1}, r"^reward.arguments.x: .* it takes y$"),
    ("def score(asked, **all): pass", {"asked": 1}, r"^reward.arguments.asked: "),
    ("def score(): pass", {}, "its first must be the list of conversations"),
    ("def score(*, asked): pass", {}, "takes no list of conversations as its first argument"),
    ("def score(asked, truth, /): pass", {}, "takes `truth` by place; it must take it by name"),
    ("async def score(asked): pass", {}, "is async; give a plain function"),
    ("score = 3", {}, "is a int, not a function"),
    ("def other(asked): pass\ndef more(asked): pass", {}, "has no `score`; it has other, more$"),
    ("def score(asked)", {}, r"mine.py:1: expected ':'; repair it"),
    ("import nonesuch", {}, "mine.py cannot be imported .ModuleNotFoundError: No module named 'nonesuch'."),
    ("1 / 0", {}, "mine.py cannot be imported .ZeroDivisionError"),
    ("def score(asked, truth): return asked", {}, "needs the column `truth`, and there is none here"),
]


@pytest.mark.parametrize(("text", "arguments", "said"), TAKES, ids=[said for *_, said in TAKES])
def test_what_cannot_be_called_is_refused(written, text, arguments, said):
    assert re.search(said, refusal(written(text + "\n", **arguments)))


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("nonesuch.py:score", r"nonesuch.py cannot be read \(No such file or directory\); check the path"),
        ("nonesuch.deep:score", "there is no module nonesuch; install it"),
        ("json.nonesuch:score", "there is no module json.nonesuch"),
        ("json:nonesuch", "json has no `nonesuch`; it has dump, dumps"),
        ("mine", "not of the form"), ("mine.py", "not of the form"), ("mine:", "not of the form"),
        ("a b:score", "not of the form"), ("mine.py:a.b", "not of the form"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_refused(written, target, said):
    config = written("def score(asked): return [0] * len(asked)\n")
    config.function = target
    assert re.search(f"^reward.function: .*{said}", refusal(config))


def test_a_module_of_the_working_directory_and_what_lies_beside_a_file(written, tmp_path):
    (tmp_path / "words_beside.py").write_text("WEIGHT = 3\n")
    text = "from words_beside import WEIGHT\ndef score(asked): return [WEIGHT] * len(asked)\n"
    config = written(text)
    assert scores(config) == [3.0] * 4
    (tmp_path / "package_here").mkdir()
    (tmp_path / "package_here" / "rewards.py").write_text(text)
    config.function = "package_here.rewards:score"
    assert scores(config) == [3.0] * 4
    assert not list(tmp_path.glob("**/mine*.pyc"))


def test_its_identity_is_its_text_and_its_arguments(written):
    first = function.identity(written("def score(asked, x): return [0]\n", x=1))
    assert first == function.identity(written("def score(asked, x): return [0]\n", x=1))
    assert first != function.identity(written("def score(asked, x): return [1]\n", x=1))
    assert first["arguments"] == {"x": 1} and re.fullmatch("[0-9a-f]{64}", first["sha256"])


def test_a_changed_text_is_said_at_the_next_start(written, capsys):
    marks = [function.load(written(f"def score(asked): return [{i}] * len(asked)\n")).mark for i in (1, 1, 2)]
    marks[1].load_state_dict(marks[0].state_dict())
    assert capsys.readouterr().err == ""
    marks[2].load_state_dict(marks[0].state_dict())
    assert "mine.py:score is not the one that earlier steps were scored with" in capsys.readouterr().err


def test_it_is_called_once_before_a_run_on_two_prompts_of_the_data(written):
    config = written(
        "CALLS = []\ndef score(asked, truth, level=1):\n"
        "    CALLS.append([[m['content'] for m in c[:-1]] for c in asked] + [truth, level])\n"
        "    return [None] * len(asked)\n"
    )
    prompts = [[{"role": "user", "content": text}] for text in "abc"]
    admission = function.admit(config, prompts, [{"truth": 1}, {"truth": None}, {"truth": 3}])
    assert admission.refused == {}
    assert admission.lines == ["1 of 3 prompts have no `truth`: reward.function gets None for them"]
    from starling_train.rewards.user_function import UserFunction

    calls = UserFunction.find(config).call.__globals__["CALLS"]
    assert calls == [[["a"], ["b"], [1, None], 1]]
    with pytest.raises(UserError, match=r"needs `truth`: the data has level; add it to the data, set \+reward.argum"):
        function.admit(config, prompts, [{"level": 1}] * 3)
    with pytest.raises(UserError, match="needs `truth`: the data has no such column"):
        function.admit(config, prompts, [{}] * 3)


def test_a_reward_function_as_trl_has_them_is_told_what_it_gets_here(tmp_path):
    (tmp_path / "trl.py").write_text("def score(prompts, completions, **kwargs):\n    return [0.0]\n")
    config = RewardConfig(kind="function", function=f"{tmp_path}/trl.py:score")
    with pytest.raises(UserError, match="needs `completions`, as TRL's reward functions do: here it gets a list"):
        function.admit(config, [[{"role": "user", "content": "a"}]], [{}])


def test_no_gradient_is_kept(written):
    config = written(
        "import torch\nW = torch.ones(1, requires_grad=True)\n"
        "def score(asked):\n    assert not torch.is_grad_enabled()\n    return [W * 2] * len(asked)\n"
    )
    assert scores(config) == [2.0] * 4 and torch.is_grad_enabled()


def test_keys_of_a_function_are_refused_where_they_are_not_read(written):
    config = written("def score(asked): return []\n")
    config.kind, config.path = "starling_7b", "DIR"
    assert refusal(config).startswith("reward.function: set, but reward.kind=starling_7b does not read it; use reward=")
    with pytest.raises(UserError, match=r"^reward.function: not set; give package"):
        check_reward(RewardConfig(kind="function"))
