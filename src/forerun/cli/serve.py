"""`forerun serve`: an OpenAI-compatible server."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from forerun.async_llm import AsyncLLM
from forerun.cli.console import one_line_errors, progress_bar
from forerun.cli.options import (
    DEFAULT_TARGET,
    DeviceOption,
    DrafterDeviceOption,
    DrafterOption,
    DtypeOption,
    TargetOption,
    drafter_argument,
    memory_argument,
    num_draft_tokens_argument,
)
from forerun.server.auth import read_key_file
from forerun.server.chat_prompt import load_chat_template
from forerun.server.logs import LogFormat, LogLevel, configure
from forerun.server.serving import allowed_hosts, check_address, listen, url_of
from forerun.server.serving import serve as run_server
from forerun.server.settings import ServerSettings
from forerun.server.tools import tool_parser
from forerun.server.tracing import collector_url


def serve(
    target: TargetOption = DEFAULT_TARGET,
    drafter: DrafterOption = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 is any free one.")] = 8000,
    api_key_file: Annotated[Path | None, typer.Option("--api-key-file", help="One key a line, `key` or `name:key`. Left out: loopback only, no key asked.")] = None,
    allow_remote: Annotated[bool, typer.Option("--allow-remote", help="Let --host be an address that others can reach; needs keys.")] = False,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    drafter_device: DrafterDeviceOption = None,
    served_model_name: Annotated[str | None, typer.Option("--served-model-name", help="What requests call the model. Left out: the target's name.")] = None,
    max_num_seqs: Annotated[int, typer.Option("--max-num-seqs", min=1, help="Requests that run together, at most.")] = 16,
    max_model_len: Annotated[int | None, typer.Option("--max-model-len", min=2, help="Tokens of a prompt and its output. Left out: the model's own.")] = None,
    max_waiting: Annotated[int, typer.Option("--max-waiting", min=1, help="Requests that wait, at most; further ones get 429.")] = 1024,
    kv_cache_memory: Annotated[str | None, typer.Option("--kv-cache-memory", help="Bound of keys and values, like 512MiB, or a share of the free memory, like 0.25.")] = None,
    prefix_caching: Annotated[bool | None, typer.Option("--prefix-caching/--no-prefix-caching", help="Keep past prompts for requests that begin alike. Left out: where the kernels are bitwise.")] = None,
    max_num_batched_tokens: Annotated[int, typer.Option("--max-num-batched-tokens", min=1, help="Tokens of prompts that a step reads, at most: less is smoother for running texts.")] = 512,
    num_draft_tokens: Annotated[str, typer.Option("--num-draft-tokens", "-k", help="auto, a number, or 0 for plain decoding.")] = "auto",
    drain_seconds: Annotated[float, typer.Option("--drain-seconds", min=0, help="On SIGTERM, how long running requests may take to finish.")] = 30.0,
    stream_flush_tokens: Annotated[int, typer.Option("--stream-flush-tokens", min=1, max=1024, help="Streams write so many tokens at once, so that nobody sees what a step brought.")] = 1,
    stream_interval_ms: Annotated[float, typer.Option("--stream-interval-ms", min=0, max=10_000, help="Streams write only so often; 0 is at once.")] = 0.0,
    chat_template: Annotated[Path | None, typer.Option("--chat-template", help="File with a Jinja template in place of the model's own.")] = None,
    tool_call_parser: Annotated[str | None, typer.Option("--tool-call-parser", help="Format of the model's calls: hermes, llama3_json, mistral, mistral_args, pythonic or json. Left out: the chat template tells.")] = None,
    log_format: Annotated[LogFormat, typer.Option("--log-format", help="Words for people, or an object of JSON a line.")] = "text",
    log_level: Annotated[LogLevel, typer.Option("--log-level", help="info has a line a request, without texts.")] = "info",
    log_requests: Annotated[bool, typer.Option("--log-requests", help="Put what was sent and answered into the log, too: prompts and outputs.")] = False,
    otlp_endpoint: Annotated[str | None, typer.Option("--otlp-endpoint", help="Send a span a request to this OpenTelemetry collector, as http://127.0.0.1:4318. Needs the extra forerun[tracing].")] = None,
) -> None:
    """Serve a model over HTTP, as OpenAI's API has it."""
    console = Console(stderr=True, highlight=False)

    def announce(line: str) -> None:
        console.print(f"forerun: {line}", markup=False, soft_wrap=True)

    with one_line_errors():
        keys = () if api_key_file is None else read_key_file(api_key_file)
        check_address(host, bool(keys), allow_remote)
        settings = ServerSettings(
            target=_name_of(target),
            served_model_name=served_model_name or _name_of(target),
            keys=keys,
            allowed_hosts=allowed_hosts(host),
            stream_flush_tokens=stream_flush_tokens,
            stream_interval_ms=stream_interval_ms,
            log_requests=log_requests,
            chat_template=None if chat_template is None else load_chat_template(chat_template),
            tool_call_parser=None if tool_call_parser is None else tool_parser(tool_call_parser).name,
            otlp_endpoint=None if otlp_endpoint is None else collector_url(otlp_endpoint),
        )
        memory = memory_argument(kv_cache_memory)
        draft_length = num_draft_tokens_argument(num_draft_tokens)
        listener = listen(host, port)  # refused before the model is loaded, not after
        configure(log_format, log_level, with_text=log_requests)
        with progress_bar(sys.stderr.isatty(), f"loading {target}"):
            async_llm = AsyncLLM.load(
                target,
                drafter_argument(drafter),
                dtype=dtype,
                device=device,
                drafter_device=drafter_device,
                max_num_seqs=max_num_seqs,
                max_model_len=max_model_len,
                num_draft_tokens=draft_length,
                kv_cache_memory=memory,
                enable_prefix_caching=prefix_caching,
                max_num_batched_tokens=max_num_batched_tokens,
                max_waiting=max_waiting,
            )
        llm = async_llm.llm
        announce(
            f"{url_of(listener)} serves {settings.served_model_name} ({llm.exactness.kind}; drafters: {', '.join(llm.drafter_names) or 'none'};"
            f" {llm.memory}; {f'keys: {len(keys)}' if keys else 'no key asked'})"
        )
        run_server(async_llm, settings, listener, drain_seconds, announce)


def _name_of(target: str) -> str:
    """What clients may see: of a model folder its last part."""
    return Path(target).resolve().name if Path(target).is_dir() else target
