"""python -m starling_train.serve_reward reward.path=DIR port=8000: a reward model over HTTP, for runs and others."""

import ipaddress
import socket
import sys
from typing import TYPE_CHECKING

from starling_train.cli import command
from starling_train.config.fields import UserError
from starling_train.config.serve_reward import ServeConfig, check

if TYPE_CHECKING:
    from types import FrameType

    from fastapi import FastAPI

BACKLOG = 2048  # connections that the kernel holds until they are accepted


@command(check, ServeConfig, "serve_reward")
def main(config: ServeConfig) -> None:
    """Bind the address, load the model, answer until a signal comes."""
    from starling_train.models.patient_http import token_of
    from starling_train.rewards import directory, server_app
    from starling_train.rewards.server_queue import RewardQueue
    from starling_train.run.runtime import Runtime

    # 1. What can be checked cheaply, before minutes of loading.
    token = token_of(config.token_env)
    if config.token_env and not token and not is_loopback(config.host):
        raise UserError(
            f"host: others can reach {config.host}; set the environment variable {config.token_env} to a token that "
            "clients must send, or give token_env=null to let everybody in"
        )
    if config.dry_run:
        wants = f"for the token in {config.token_env}" if token else "for no token"
        print(f"would serve {config.reward.path} ({config.reward.kind}) on {config.host}:{config.port}, asking {wants}")
        return
    listener = listen(config.host, config.port)
    directory.check(config.reward)

    # 2. The model, and the one thread that owns it.
    model = directory.load(config.reward, Runtime.of(config.cluster, config.seed))
    scores = RewardQueue(model, config.max_wait_ms / 1000)
    about = directory.about(config.reward)
    app = server_app.build(scores, token=token, max_body_bytes=int(config.max_body_mb * 1e6), about=about)

    # 3. Answer.
    serve(app, listener, config)
    scores.close()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """Return a socket bound to the address, not yet answering. Raises UserError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError, ValueError) as error:  # the last two: a name that cannot be one
        reason = getattr(error, "strerror", None) or "not the name of a host"
        raise UserError(f"host: '{host}' is not an address of this machine ({reason}); try 127.0.0.1") from error
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a restart need not wait for old connections
    try:
        listener.bind(address)
    except OSError as error:
        raise UserError(
            f"port: cannot listen on {host}:{port} ({error.strerror}); give another port or host"
        ) from error
    return listener


def serve(app: "FastAPI", listener: socket.socket, config: ServeConfig) -> None:
    """Answer until SIGTERM (exit code 143) or Ctrl-C (130), then finish what is under way and end.

    A signal that was ignored when the command started stays so.
    """
    import signal

    import uvicorn

    from starling_train.run import interruption

    class Server(uvicorn.Server):
        """Uvicorn's server, which also prints its address once it listens."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            host, port = listener.getsockname()[:2]
            print(f"serving on http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)

        def handle_exit(self, sig: int, frame: "FrameType | None") -> None:
            # Ctrl-C delivered twice would cut off what is under way
            if sig in heard and (sig != signal.SIGINT or interruption.is_first(sig)):
                super().handle_exit(sig, frame)

    stopped: list[int] = []
    heard = [number for number in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(number) != signal.SIG_IGN]
    for handled in heard:
        signal.signal(handled, lambda received, frame: stopped.append(received))
    settings = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        backlog=BACKLOG,
        limit_concurrency=config.max_connections,
        timeout_graceful_shutdown=config.shutdown_s,
        timeout_keep_alive=75,  # longer than a PPO step of a small run: clients keep their connections
        server_header=False,
        http="httptools",
    )
    # uvicorn handles the signals while it runs, and sends them again to the handlers above when it is done
    Server(settings).run(sockets=[listener])
    if stopped:
        print("stopped by a signal, all requests answered")
        sys.exit(128 + stopped[0])


if __name__ == "__main__":
    main()
