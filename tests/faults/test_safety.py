"""No code from files, no secret in what is written or said, and a reward server that refuses what it should."""

import ast
import json
from http.client import HTTPConnection
from importlib.util import find_spec
from pathlib import Path

import pytest
from reward_checkpoints import fresh_net, small_tokenizer
from reward_server import Scripted, Served, ask

import starling_train
from starling_train import cli
from starling_train.config.fields import UserError
from starling_train.config.ppo import PpoConfig
from starling_train.models.reward import write_starling_7b
from starling_train.run.tracker import TRACKERS

PACKAGE = Path(starling_train.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
HELLO = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
SECRETS = {
    "HF_TOKEN": "hf_AbCdEfGhIjKlMnOpQrStUv", "WANDB_API_KEY": "5ec4e7" * 7, "STARLING_REWARD_TOKEN": "correct-horse-9",
}  # fmt: skip


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    """(dotted name, call) of every call in a file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            found.append((ast.unparse(node.func), node))
    return found


def test_nothing_that_is_read_can_run_code():
    """No pickle, no eval, no shell, no remote code; torch reads plain tensors only."""
    forbidden = {
        "eval", "exec", "compile", "pickle.load", "pickle.loads", "dill.load", "joblib.load", "marshal.loads",
        "yaml.load", "yaml.unsafe_load", "os.system", "os.popen", "numpy.load", "np.load",
    }  # fmt: skip
    wrong, loads = [], 0
    for path in FILES:
        for name, call in calls(path):
            values = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            if name in forbidden or name.endswith(("Unpickler", ".read_pickle")):
                wrong.append(f"{path}:{call.lineno}: {name}")
            if name == "torch.load":
                loads += 1
                if values.get("weights_only") != "True":
                    wrong.append(f"{path}:{call.lineno}: torch.load without weights_only=True")
            if values.get("trust_remote_code", "False") != "False":
                wrong.append(f"{path}:{call.lineno}: trust_remote_code={values['trust_remote_code']}")
            if values.get("shell", "False") != "False" or values.get("allow_pickle", "False") != "False":
                wrong.append(f"{path}:{call.lineno}: {name}")
    assert wrong == [] and loads >= 2


def test_a_recipe_cannot_ask_for_remote_code():
    text = "".join(file.read_text() for folder in ("conf", "recipes") for file in cli.find(folder).rglob("*.yaml"))
    assert "trust_remote_code" not in text


@pytest.mark.parametrize(
    "said,hidden",
    [
        ("reward.url: http://me:hunter2@host/x is away", "hunter2"),
        ("model.path: 'https://user:hunter2@huggingface.co/a/b' is no directory", "hunter2"),
        ("model.revision: hf_AbCdEfGhIjKlMnOp is no revision", "AbCdEfGh"),
    ],
)
def test_no_error_line_shows_a_secret(said, hidden, monkeypatch, capsys):
    def fail(config: PpoConfig) -> None:
        raise UserError(said)

    monkeypatch.setattr("sys.argv", ["ppo"])
    with pytest.raises(SystemExit):
        cli.command(lambda config: None)(fail)()
    line = capsys.readouterr().err
    assert line.startswith("error: ") and hidden not in line and "***" in line


def test_a_run_writes_and_says_no_secret(small_run, run_command, monkeypatch, tmp_path):
    """A run with a served reward model, offline trackers and an error at its end: all that it leaves is searched."""
    pytest.importorskip("wandb", reason="wandb is an extra")
    trackers = [name for name in TRACKERS if find_spec(name)]
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    for variable, value in (SECRETS | {"WANDB_SILENT": "true"}).items():
        monkeypatch.setenv(variable, value)
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"{i} + {i}?"}) + "\n" for i in range(20)))
    with Scripted() as server:
        arguments = [
            *small_run, "data.path=prompts.jsonl", "reward=server", f"reward.url=http://127.0.0.1:{server.server_port}",
            "logging.wandb=offline", f"logging.trackers=[{','.join(trackers)}]", "algorithm.steps=1",
            "freeze.method=last_layers", "freeze.last_layers=1",
        ]  # fmt: skip
        done = run_command("ppo", *arguments)
        assert done.returncode == 0, done.stderr[-2000:]
        assert server.requests[0][1]["Authorization"] == f"Bearer {SECRETS['STARLING_REWARD_TOKEN']}"
    wrong = run_command("ppo", *arguments, "seed=1")
    shown = run_command("ppo", *arguments, "--cfg", "job")
    assert wrong.returncode == 2 and shown.returncode == 0
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"config.yaml", "summary.json", "report.html", "metrics.jsonl"} <= {path.name for path in files}
    texts = "".join(one.stdout + one.stderr for one in (done, wrong, shown))
    said = {"said": texts.encode()}
    for where, content in [*said.items(), *((str(path), path.read_bytes()) for path in files)]:
        for name, secret in SECRETS.items():
            assert secret.encode() not in content, f"{name} is in {where}"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    directory = tmp_path_factory.mktemp("served")
    write_starling_7b(fresh_net(), directory, small_tokenizer())
    arguments = [f"reward.path={directory}", "reward.dtype=float32", "reward.max_length=400", "max_body_mb=0.05"]
    with Served(*arguments, STARLING_REWARD_TOKEN=SECRETS["STARLING_REWARD_TOKEN"]) as served:
        assert served.url
        yield served


BODY = json.dumps({"conversations": [HELLO]})
TOKEN = {"Authorization": f"Bearer {SECRETS['STARLING_REWARD_TOKEN']}"}


@pytest.mark.parametrize("path", ["/score", "/get_reward"])
@pytest.mark.parametrize(
    "body,headers,status,says",
    [
        (BODY, {}, 401, "send Authorization: Bearer"),
        (BODY, {"Authorization": "Bearer wrong"}, 401, "send Authorization: Bearer"),
        (BODY, {"Authorization": "Bearer "}, 401, "send Authorization: Bearer"),
        (BODY, {"Authorization": SECRETS["STARLING_REWARD_TOKEN"]}, 401, "send Authorization: Bearer"),
        ("{", {}, 401, "send Authorization: Bearer"),  # who has no token learns nothing about bodies
        (BODY, TOKEN | {"Content-Type": "text/plain"}, 415, "Content-Type: application/json"),
        (BODY, TOKEN | {"Content-Type": "application/x-www-form-urlencoded"}, 415, "Content-Type: application/json"),
        (BODY, TOKEN | {"Content-Encoding": "gzip"}, 415, "send it unencoded"),
        ("{", TOKEN, 400, "not JSON"),
        ("", TOKEN, 400, "not JSON"),
        ("[" * 40_000, TOKEN, 400, "not JSON"),
        ('{"a":' * 8_000, TOKEN, 400, "not JSON"),
        ("9" * 5_000, TOKEN, 400, "not JSON"),
        ("[]", TOKEN, 400, "send"),
        ('"' + "x" * 60_000 + '"', TOKEN, 413, "max_body_mb"),
    ],
)
def test_the_server_refuses_with_a_status_and_a_message(server, path, body, headers, status, says):
    connection = HTTPConnection("127.0.0.1", server.port, timeout=30)
    got, answer = ask(connection, body, path, **headers)
    connection.close()
    assert (got, list(answer)) == (status, ["error"]) and says in answer["error"]
    assert SECRETS["STARLING_REWARD_TOKEN"] not in json.dumps(answer)


@pytest.mark.parametrize("method,path,status", [
    ("GET", "/score", 405), ("PUT", "/score", 405), ("DELETE", "/get_reward", 405), ("POST", "/health", 405),
    ("GET", "/", 404), ("GET", "/docs", 404), ("GET", "/openapi.json", 404), ("POST", "/score/../../etc/passwd", 404),
])  # fmt: skip
def test_other_routes_and_methods_are_refused(server, method, path, status):
    connection = HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request(method, path, BODY if method in ("POST", "PUT") else None, TOKEN)
    response = connection.getresponse()
    assert response.status == status and "use POST /score" in json.loads(response.read())["error"]
    connection.close()


def test_json_by_any_of_its_names_is_taken(server):
    connection = HTTPConnection("127.0.0.1", server.port, timeout=30)
    for kind in ({}, {"Content-Type": "application/json; charset=utf-8"}, {"Content-Type": "application/vnd.x+json"}):
        assert ask(connection, BODY, **TOKEN, **kind)[0] == 200
    connection.close()
