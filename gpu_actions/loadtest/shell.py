"""What the command and its subcommands share: the flags of a load, derived from `LoadSpec`, and how a run is carried out."""

import argparse
import asyncio
import contextlib
import gc
import os
import resource
import signal
import socket
import sys
import tomllib
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from gpu_actions.config.policies import BUILT_IN_PROFILES, DEFAULT_MAX_QPS, LoadPolicy, LoadTestSettings
from gpu_actions.loadtest.knee_result import KneeProgress
from gpu_actions.loadtest.request import above_caps
from gpu_actions.loadtest.result import LoadProgress, LoadTestResult
from gpu_actions.loadtest.run import run_load_test
from gpu_actions.loadtest.schedule import make_schedule
from gpu_actions.loadtest.spec import LoadSpec, explain_invalid
from gpu_actions.loadtest.target import LoadTestRefused
from gpu_actions.serving.routers.base import RouterConfig
from gpu_actions.system.urls import port_of

EXIT_WRONG_USAGE = 2
API_KEY_VARIABLE = "GPU_ONCALL_LOADTEST_API_KEY"
SETTINGS_VARIABLE = "GPU_ONCALL_CONFIG"
SETTINGS_FILES = (Path("gpu-oncall.toml"), Path("/etc/gpu-oncall/gpu-oncall.toml"))
"""Where the bot finds its settings."""
LOCAL_NAMES = {"localhost", "127.0.0.1", "::1", "0.0.0.0", socket.gethostname()}
T = TypeVar("T")

FLAG_NAMES = {"duration_s": "--duration", "gpu_uuids": "--gpu-uuid", "measure_energy": "--no-energy"}
"""Flags whose names do not follow from their field: those of the runbook, and those that read better."""
METAVARS = {"_s": "SECONDS", "_ms": "MS", "_qps": "QPS", "_percent": "PERCENT", "_kwh": "USD"}


def add_load_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each field of `LoadSpec` but the API key. None has a default here, so the spec's own defaults apply."""
    for name, field in LoadSpec.model_fields.items():
        if name == "api_key":
            continue  # from the environment only: arguments are visible to every process of the host
        is_on = field.annotation is bool and field.default is True
        flag = FLAG_NAMES.get(name, ("--no-" if is_on else "--") + name.replace("_", "-"))
        text = ("do not " if is_on else "") + (field.description or name)
        if isinstance(field.default, str | int | float) and field.annotation is not bool:
            text += f" (default {field.default})"
        options = _flag_options(name, field)
        parser.add_argument(flag, dest=name, default=None, help=text.replace("%", "%%"), **options)
    parser.add_argument(
        "--profile",
        metavar="NAME",
        help=f"take the load from a profile; other flags win over it. Built in: {', '.join(BUILT_IN_PROFILES)}",
    )
    parser.add_argument(
        "--settings",
        type=Path,
        metavar="FILE",
        help="settings file with more profiles, and with the caps of its hosts, which hold for their URLs; default: the bot's",
    )
    parser.add_argument(
        "--allow-smaller-world",
        action="store_true",
        help="accepted for the runbook's sake: this tool needs no world of GPUs",
    )


def _flag_options(name: str, field: FieldInfo) -> dict[str, Any]:
    if name == "max_new_tokens":
        return {"metavar": "N or N-M"}
    kind: Any = field.annotation
    if isinstance(kind, UnionType):
        kind = get_args(kind)[0]  # X | None
    if kind is bool:
        return {"action": "store_const", "const": not field.default}
    if get_origin(kind) is Literal:
        return {"choices": get_args(kind)}
    if get_origin(kind) is tuple:
        of = get_args(kind)[0]
        return {"action": "append", "type": of, "metavar": "UUID" if of is str else "TOKENS"}
    if kind is str:
        return {}
    ending = next((word for ending, word in METAVARS.items() if name.endswith(ending)), "N")
    return {"type": kind, "metavar": "FILE" if kind is Path else ending}


def spec_from(options: argparse.Namespace) -> LoadSpec:
    """Build the spec of parsed flags. The API key comes from the environment.

    Raises pydantic.ValidationError, and LoadTestRefused for an unknown profile, a settings file that cannot be read, and a load
    above the caps of the host that the URL belongs to.
    """
    fields = {
        name: value
        for name, value in vars(options).items()
        if name in LoadSpec.model_fields and value is not None
    }
    file, settings = _settings_of(options)
    if options.profile is not None:
        profile = _profile(options.profile, file, settings).model_dump()
        if "max_new_tokens" in fields:
            profile |= {
                "min_new_tokens": None,
                "answer_lengths": (),
            }  # a flag replaces the profile's whole range
        if {"prompt_len_min", "prompt_len_max"} & fields.keys():
            profile["prompt_lengths"] = ()
        fields = {**profile, **fields}
    if "seed" in fields:
        fields.setdefault("nonce", 0)  # who names a seed wants the same prompts again
    if key := os.environ.get(API_KEY_VARIABLE):
        fields["api_key"] = key
    spec = LoadSpec.model_validate(fields)
    _check_caps(spec, options, settings)
    return spec


def _settings_of(options: argparse.Namespace) -> tuple[Path | None, dict[str, Any]]:
    """Return the settings file and what is in it: the one that was named, else the bot's own where it can be read."""
    path: Path | None = options.settings
    if path is None:
        named = os.environ.get(SETTINGS_VARIABLE)
        candidates = (Path(named),) if named else SETTINGS_FILES
        path = next((one for one in candidates if one.is_file() and os.access(one, os.R_OK)), None)
    try:
        return path, {} if path is None else tomllib.loads(path.read_text())
    except OSError as error:
        raise LoadTestRefused(f"settings = {path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise LoadTestRefused(f"settings = {path}: is not TOML ({error})") from error


def _profile(name: str, file: Path | None, settings: dict[str, Any]) -> LoadPolicy:
    try:
        return LoadTestSettings.model_validate(settings.get("loadtest", {})).profile(name)
    except ValidationError as error:
        raise LoadTestRefused(f"settings = {file}: {'; '.join(explain_invalid(error))}") from error
    except ValueError as error:  # no such profile
        raise LoadTestRefused(str(error)) from error


def _check_caps(spec: LoadSpec, options: argparse.Namespace, settings: dict[str, Any]) -> None:
    """Raise LoadTestRefused if the URL belongs to a host of the settings and the load is above the caps of that host."""
    for host in settings.get("hosts", ()):
        tiers = host.get("tiers", {}).values()
        urls = [host.get("router", {}).get("url", RouterConfig.model_fields["url"].default)]
        urls += [tier.get("engine", {}).get("url", "") for tier in tiers]
        if _place(spec.url) not in map(_place, urls):
            continue
        try:
            common = LoadTestSettings.model_validate(settings.get("loadtest", {}))
            caps = LoadTestSettings.model_validate(host.get("loadtest", {})).over(common)
        except ValidationError as error:
            raise LoadTestRefused(
                f"the caps of {host.get('name')}: {'; '.join(explain_invalid(error))}"
            ) from error
        qps = spec.target_qps
        if spec.trace_file is not None:
            qps = len(make_schedule(spec)) / spec.duration_s
        highest = qps
        if getattr(options, "find_knee", False):
            options.knee_max_qps = options.knee_max_qps or min(DEFAULT_MAX_QPS, caps.qps_cap)
            highest = options.knee_max_qps
        if problems := above_caps(caps, str(host.get("name")), qps=highest, duration=spec.duration_s):
            raise LoadTestRefused("; ".join(problems))


def _place(url: str) -> tuple[str, int]:
    """Return the host and port of a URL, where all names of this machine are one."""
    name = urlsplit(url).hostname or ""
    try:
        return ("here" if name in LOCAL_NAMES else name), port_of(url)
    except ValueError:
        return name, 0


def run_event_loop(main: Coroutine[Any, Any, T]) -> T:
    """Run on uvloop where it is installed, else on asyncio, with as many sockets as the system allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    result: T = uvloop.run(main)
    return result


def complain(*lines: str) -> int:
    """Write what is wrong to standard error. Return the exit code of wrong usage."""
    for line in lines:
        sys.stderr.write(f"loadtest: {line}\n")
    return EXIT_WRONG_USAGE


async def run_with_signals(
    spec: LoadSpec, out_dir: Path, progress: Callable[[LoadProgress], None] | None, *, lifeline: bool = False
) -> LoadTestResult:
    """Run a load test that SIGINT and SIGTERM stop and drain; a second signal ends it at once.

    With `lifeline`, the end of standard input stops it too.
    """
    stop = stop_on_signals(lifeline=lifeline)
    return await run_load_test(spec, out_dir=out_dir, progress=progress, stop=stop)


def stop_on_signals(*, lifeline: bool) -> asyncio.Event:
    """Return an event that SIGINT and SIGTERM set, and with `lifeline` the end of standard input.

    A second signal cancels the current task. What exists now is frozen, so that garbage collections stay short during a run.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    this = asyncio.current_task()
    assert this is not None  # noqa: S101  (a coroutine runs in a task)

    def on_signal() -> None:
        if stop.is_set():
            this.cancel()
        stop.set()

    def on_input() -> None:
        if not os.read(0, 4096):
            loop.remove_reader(0)
            stop.set()

    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, on_signal)
    if lifeline:
        loop.add_reader(0, on_input)
    gc.collect()
    gc.freeze()
    return stop


def progress_lines(progress: LoadProgress | KneeProgress) -> None:
    """Show progress as lines on standard error."""
    sys.stderr.write(f"{progress.text}\n")
