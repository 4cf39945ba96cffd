"""``inference-unlimited serve``: build what is missing, then answer requests until stopped."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from server.commands.options import (
    ConfigFile,
    ModelOption,
    VerifyOption,
    config_reader,
    failures,
    verified,
)
from server.exit_codes import ExitCode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from server.catalog import VariantView
    from server.listeners import Addresses
    from server.optimizer import Optimizer
    from server.planning import Planned

_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - recognised, not bound


def serve(
    config: ConfigFile = None,
    model: ModelOption = None,
    *,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on [default: 127.0.0.1].")
    ] = None,
    grpc_port: Annotated[
        int | None, typer.Option(help="Port of gRPC; 0 takes a free one [default: 50051].")
    ] = None,
    http_port: Annotated[
        int | None, typer.Option(help="Port of the HTTP API; 0 takes a free one [default: 8000].")
    ] = None,
    ops_port: Annotated[
        int | None, typer.Option(help="Port of metrics and health [default: 9464].")
    ] = None,
    verify: VerifyOption = False,
) -> None:
    """Build the configured variants where the store lacks them, and serve them.

    Every variant serves as soon as it is built. Stops on SIGTERM or Ctrl-C once running streams
    are done; a second signal cuts them. Exit codes: 0 stopped, 1 failed, 2 config error, 70 hang.
    """
    import uvloop

    # Children are other programs: gRPC need not get ready for its own life in one, nor speak of it.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    started_s = _process_start_s()
    flags = {
        "server.host": host,
        "server.grpc_port": grpc_port,
        "server.http_port": http_port,
        "server.ops_port": ops_port,
    }
    code = uvloop.run(_serve(config, model, flags, started_s, verify=verify))
    if code is ExitCode.HANG or _still_loads():
        _exit_now(code)  # a thread is in the middle of native code, which nothing can end
    raise typer.Exit(code)


async def _serve(
    config: Path | None,
    model: str | None,
    flags: Mapping[str, Any],
    started_s: float,
    *,
    verify: bool,
) -> ExitCode:
    import asyncio

    _cancel_on_signals()  # until the app has its own handlers
    with failures():
        try:
            planned, optimizer, plan_s = await _prepare(config, model, flags, verify=verify)
        except asyncio.CancelledError:
            _exit_now(ExitCode.OK)  # its child is gone; a thread may import or hash for long yet
        return await _run(planned, optimizer, started_s, plan_s)


def _cancel_on_signals() -> None:
    """Have the running task cancelled by what asks the process to stop."""
    import asyncio

    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    if task is not None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, task.cancel)


async def _prepare(
    config: Path | None, model: str | None, flags: Mapping[str, Any], *, verify: bool
) -> tuple[Planned, Optimizer, float]:
    """Everything before the server proper; also gives how many seconds the planning took."""
    import asyncio

    from server import logs
    from server.optimizer import ChildOptimizer
    from server.planning import plan

    source, read = config_reader(config, model, flags)
    logs.configure("info", "auto")  # until the config says otherwise
    optimizer = ChildOptimizer()
    # The chains are judged by a child; meanwhile the libraries that serving needs are loaded.
    importing = asyncio.create_task(asyncio.to_thread(_import_serving))
    begun_s = time.monotonic()
    planned = await plan(read, source, optimizer)
    plan_s = time.monotonic() - begun_s
    await importing
    log = planned.config.log
    logs.configure(log.level, log.format)
    if verify:
        planned = await asyncio.to_thread(verified, planned)
    return planned, optimizer, plan_s


async def _run(planned: Planned, optimizer: Optimizer, started_s: float, plan_s: float) -> ExitCode:
    from server.app import App
    from server.progress import ProgressBars

    greeting = _Greeting(planned.config.model)
    with ProgressBars() as bars:
        app = App(
            planned,
            optimizer,
            watchers=(bars.show, greeting.ready),
            listening=greeting.listening,
            started_s=started_s,
            plan_s=plan_s,
        )
        return await app.run()


def _exit_now(code: ExitCode) -> NoReturn:
    """End without waiting for threads."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _still_loads() -> bool:
    """Whether a variant was being loaded when the server was told to stop."""
    from server.quiet_thread import any_quiet_thread

    return any_quiet_thread()


def _import_serving() -> None:
    import onnxruntime  # noqa: F401

    import server.app  # noqa: F401


class _Greeting:
    """What a person at the terminal is told: where to ask, and how."""

    def __init__(self, model: str) -> None:
        self._prompt = "def fibonacci(n):" if model == "demo" else "Once upon a time"
        self._target = ""
        self._said = False

    def listening(self, addresses: Addresses) -> None:
        self._target = _reachable(addresses.host, addresses.grpc_port)
        typer.echo(f"gRPC     {self._target}")
        if addresses.http_port is not None:
            typer.echo(f"HTTP     http://{_reachable(addresses.host, addresses.http_port)}/v1")
        ops = _reachable(addresses.ops_host, addresses.ops_port)
        typer.echo(f"metrics  http://{ops}/metrics")

    def ready(self, view: VariantView) -> None:
        if self._said or view.limits is None:
            return
        self._said = True
        typer.echo(f"Variant {view.name} serves. Try:")
        typer.echo(
            f"  {_command()} generate --prompt {shlex.quote(self._prompt)} --target {self._target}"
        )
        sys.stdout.flush()


def _reachable(host: str, port: int) -> str:
    """Where to ask a server that listens on ``host``: a wildcard is no address to ask."""
    host = _ANY_ADDRESS.get(host, host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _command() -> str:
    """How this program is called from here."""
    name = "inference-unlimited"
    own, found = Path(sys.argv[0]), shutil.which(name)
    if own.name != name or (found is not None and Path(found).samefile(own)):
        return name
    try:
        return str(own.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(own)


def _process_start_s() -> float:
    """Monotonic seconds when this process began, interpreter start included."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    since_boot_s = ticks / os.sysconf("SC_CLK_TCK")
    return time.monotonic() - (time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot_s)
