"""What can be configured: frozen sections whose fields carry bounds and their own description.

Owns names, types, defaults and bounds; ``docs/configuration.md`` is generated from them. Knows
nothing of where values come from (``server.config.sources``) or of what a chain may hold: the
optimizer judges chains, since only it knows the stages.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    StringConstraints,
    field_validator,
)
from pydantic_core import PydanticCustomError

from server.access import Right
from server.budget import OnBreach, When
from server.drafts import DraftMethod
from server.search.objectives import ObjectiveName

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,62}$"

VariantName = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
Weight = Annotated[float, Field(ge=0, le=1_000_000, allow_inf_nan=False)]
Port = Annotated[int, Field(ge=0, le=65535)]
FilePath = Annotated[str, StringConstraints(min_length=1, max_length=4096)]


class Section(BaseModel):
    """A closed, immutable part of the configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class TextFile(Section):
    """A file of texts."""

    text: FilePath = Field(
        description="A `.jsonl` file with a `text` field per line, or a `.txt` file; a relative "
        "path is relative to the config file.",
    )


class BudgetSection(Section):
    """What a variant may lose against the original model."""

    kl_mean: float | None = Field(
        default=None,
        gt=0,
        le=1000,
        description="Mean of KL(original || variant) in nats, at most. Unset, as for every limit: "
        "not judged.",
    )
    kl_p99: float | None = Field(
        default=None,
        gt=0,
        le=1000,
        description="Its 99th percentile over positions, at most.",
    )
    top1_agreement: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Share of positions at which the likeliest token is the original's, at least.",
    )
    perplexity_ratio: float | None = Field(
        default=None,
        gt=0,
        le=1_000_000,
        description="Perplexity over the original's, at most; needs `evaluation.text`.",
    )
    size_bytes: ByteSize | None = Field(
        default=None,
        ge=1024,
        le=1 << 50,
        description="All files of the artifact together, at most.",
    )
    on_breach: OnBreach = Field(
        default=OnBreach.REFUSE,
        description="`refuse` fails the variant, `rollback` serves the longest part of its chain "
        "that keeps to the limits (`restructure` or `prune` counts as one with its `recover`), "
        "`warn` serves it all the same and says so.",
    )
    when: When = Field(
        default=When.BEFORE_SERVING,
        description="`after_serving` serves at once, marked unverified, and measures in the "
        "background when all variants are up; a breach then withdraws the variant.",
    )


class SpeculationSection(Section):
    """Tokens guessed ahead and checked: they change how fast a variant is, never what it says."""

    method: DraftMethod = Field(
        description="`prompt_lookup` guesses what followed the same few tokens before, in prompt "
        "or answer; `draft` asks another variant.",
    )
    variant: VariantName | None = Field(
        default=None,
        description="With `draft`: the variant that guesses, smaller and much alike. It is loaded "
        "a second time, with as many slots.",
    )
    max_draft_tokens: int = Field(
        default=8,
        ge=1,
        le=64,
        description="Guesses of one sequence in one step, at most.",
    )
    adaptive: bool = Field(
        default=True,
        description="How many are made follows from how often they are right and from what steps "
        "are measured to cost; none where it does not pay. `false` always makes as many as it may.",
    )


class VariantSection(Section):
    """One variant."""

    chain: Any = Field(default=(), description="A list of stages; `[]` is the original model.")
    budget: BudgetSection | None = Field(
        default=None,
        description="Overrides fields of `budget` for this variant; `null` lifts a limit.",
    )
    speculation: SpeculationSection | None = Field(
        default=None, description="Speculative decoding; unset: none."
    )


def _variant(value: Any) -> Any:
    """A variant that is no mapping is its chain."""
    return value if isinstance(value, (dict, VariantSection)) else {"chain": value}


class EngineSection(Section):
    """How requests share a variant's cache and the processor."""

    slots: int = Field(
        default=16,
        ge=1,
        le=1024,
        description="Sequences per variant that are computed at the same time.",
    )
    max_length: int | None = Field(
        default=None,
        ge=16,
        le=1_048_576,
        description="Longest sequence in tokens, prompt and completion together. Unset: the "
        "model's own limit.",
    )
    kv_bytes: ByteSize | None = Field(
        default=None,
        ge=1024,
        le=1 << 50,
        description="Memory for one variant's key-value cache, such as `2GiB`. Unset: half of "
        "the memory (or cgroup limit) that is left after weights, shared by the variants.",
    )
    step_tokens: int = Field(
        default=256,
        ge=1,
        le=65536,
        description="Tokens computed in one step at most, so that a long prompt does not stall "
        "the streams of others.",
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Threads of ONNX Runtime, shared by all variants. Unset: one per physical "
        "core that the process may use.",
    )
    max_waiting: int = Field(
        default=256,
        ge=0,
        le=1_000_000,
        description="Requests per variant that may wait for a slot, answers that their caller "
        "has not read yet included; further ones are refused with RESOURCE_EXHAUSTED.",
    )
    max_queue_seconds: float = Field(
        default=30,
        ge=0.1,
        le=86_400,
        description="How long a request may wait for a slot. One that would wait longer, by how "
        "fast requests have ended lately, is refused at once with RESOURCE_EXHAUSTED; one that "
        "waits longer all the same ends with it.",
    )
    hang_seconds: float = Field(
        default=60,
        ge=1,
        le=86_400,
        description="A step that takes longer than this, and than ten times what was predicted, "
        "counts as hung: all streams end UNAVAILABLE and the process exits with status 70.",
    )


class LimitsSection(Section):
    """What one request may ask for, besides what the variant itself can take."""

    max_prompt_bytes: ByteSize = Field(
        default=ByteSize(1 << 20), ge=16, le=1 << 30, description="UTF-8 bytes of a prompt."
    )
    max_prompt_tokens: int = Field(
        default=1 << 17, ge=1, le=1 << 24, description="Tokens of a prompt."
    )
    max_completion_tokens: int = Field(
        default=1 << 17, ge=1, le=1 << 24, description="The largest `max_tokens`."
    )
    default_completion_tokens: int = Field(
        default=1024, ge=1, le=1 << 24, description="`max_tokens` of a request that gives none."
    )
    max_stops: int = Field(default=16, ge=0, le=1024, description="Stop strings.")
    max_stop_bytes: int = Field(
        default=256, ge=1, le=65536, description="UTF-8 bytes of a stop string."
    )
    max_stop_token_ids: int = Field(default=64, ge=0, le=65536, description="Stop token ids.")
    max_logit_bias: int = Field(
        default=1024, ge=0, le=65536, description="Entries of `logit_bias`."
    )
    max_logprobs: int = Field(default=20, ge=0, le=1024, description="Alternatives per token.")
    max_routing_key_bytes: int = Field(
        default=256, ge=1, le=65536, description="UTF-8 bytes of a routing key."
    )
    max_choices: int = Field(default=8, ge=1, le=128, description="The largest `n`.")
    max_allowed_token_ids: int = Field(
        default=16_384, ge=0, le=1 << 20, description="Entries of `allowed_token_ids`."
    )
    max_bad_words: int = Field(default=64, ge=0, le=1024, description="Entries of `bad_words`.")
    max_bad_word_bytes: int = Field(
        default=256, ge=1, le=65536, description="UTF-8 bytes of one of `bad_words`."
    )
    max_format_bytes: ByteSize = Field(
        default=ByteSize(64 << 10),
        ge=16,
        le=16 << 20,
        description="UTF-8 bytes of a `response_format`.",
    )
    max_messages: int = Field(
        default=1024, ge=1, le=65536, description="Messages of a conversation."
    )


class TransportSection(Section):
    """What connections may take, each listener by itself, and how long their peers may take."""

    max_connections: int = Field(
        default=1024,
        ge=1,
        le=1_000_000,
        description="Connections of one listener; further ones are closed at once.",
    )
    max_streams: int = Field(
        default=1024,
        ge=1,
        le=1_000_000,
        description="Calls of one gRPC connection at a time; further ones wait in the client.",
    )
    max_calls: int = Field(
        default=4096,
        ge=1,
        le=1_000_000,
        description="Calls of one listener at a time, over all connections; further ones are "
        "refused with RESOURCE_EXHAUSTED, over HTTP with 429. Health is not counted.",
    )
    max_metadata_bytes: ByteSize = Field(
        default=ByteSize(16 << 10),
        ge=1024,
        le=1 << 20,
        description="Metadata of a call, or an HTTP request's headers.",
    )
    head_seconds: float = Field(
        default=10,
        ge=0.1,
        le=3600,
        description="A peer may take for a TLS handshake, and again for an HTTP request's headers.",
    )
    body_seconds: float = Field(
        default=60, ge=0.1, le=3600, description="A peer may take for an HTTP request's body."
    )
    idle_seconds: int = Field(
        default=600,
        ge=1,
        le=86_400,
        description="A connection may stay open without a call.",
    )
    unread_seconds: float = Field(
        default=60,
        ge=0.1,
        le=3600,
        description="A peer may leave what is ready of an HTTP answer unread.",
    )


class TlsSection(Section):
    """Files in PEM; they are read again when they change."""

    certificate: FilePath = Field(description="The certificate's chain, the server's own first.")
    key: FilePath = Field(description="Its private key.")
    client_ca: FilePath | None = Field(
        default=None,
        description="Certificates of who must have signed those of clients. Unset: clients need "
        "none.",
    )


class TokenSection(Section):
    """A bearer token: its secret lies in a file or in an environment variable."""

    client: str = Field(
        pattern=NAME_PATTERN,
        max_length=63,
        description="Whose it is: clients get equal shares of a variant's queue.",
    )
    file: FilePath | None = Field(default=None, description="File that holds the secret.")
    env: str | None = Field(
        default=None,
        min_length=1,
        max_length=255,
        description="Environment variable that holds the secret.",
    )
    rights: tuple[Right, ...] = Field(
        default=(Right.GENERATE, Right.READ),
        min_length=1,
        description="What it allows: `generate` (also counting tokens), `read` (variants and "
        "comparisons), `admin` (loading variants, traffic).",
    )


class ServerSection(Section):
    """Where the server listens and how it stops."""

    host: str = Field(
        default="127.0.0.1",
        min_length=1,
        max_length=255,
        description="Address that gRPC listens on; `0.0.0.0` for all IPv4 addresses.",
    )
    grpc_port: Port = Field(default=50051, description="Port of the gRPC API; 0 takes a free one.")
    http_port: Port | None = Field(
        default=8000,
        description="Port of the HTTP API in OpenAI's form, on the same `host`; 0 takes a free "
        "one, `null` leaves it closed.",
    )
    ops_host: str | None = Field(
        default=None,
        min_length=1,
        max_length=255,
        description="Address of the listener for metrics and health. Unset: the same as `host`.",
    )
    ops_port: Port = Field(
        default=9464, description="Port of the listener for metrics and health; 0 takes a free one."
    )
    tls: TlsSection | None = Field(
        default=None, description="Encrypts both public listeners. Unset: plaintext."
    )
    tokens: tuple[TokenSection, ...] = Field(
        default=(),
        max_length=1024,
        description="Who may ask, with `authorization: Bearer <secret>`. Unset: everybody may do "
        "everything.",
    )
    allow_anonymous: bool = Field(
        default=False,
        description="Listen on an address that others reach without asking for a token.",
    )
    drain_seconds: float = Field(
        default=30,
        ge=0,
        le=3600,
        description="How long running streams, and readers of finished ones, may go on after "
        "SIGTERM before they are cut.",
    )
    limits: LimitsSection = Field(
        default=LimitsSection(), description="What one request may ask for."
    )
    transport: TransportSection = Field(
        default=TransportSection(),
        description="What connections may take, and how long their peers may take.",
    )


class OptimizerSection(Section):
    """How the optimizer, a program of its own, is run."""

    threads: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Threads of a build. Unset: all cores, and half of them while a variant "
        "already serves.",
    )
    optimum_python: FilePath | None = Field(
        default=None,
        description="Python interpreter of an environment that holds `optimum-onnx`, for "
        "architectures that only Optimum exports.",
    )


class AdminSection(Section):
    """What chains that are sent to a running server may name."""

    models: tuple[Annotated[str, StringConstraints(min_length=1, max_length=255)], ...] = Field(
        default=(), max_length=1024, description="Hub ids of models."
    )
    roots: tuple[FilePath, ...] = Field(
        default=(),
        max_length=64,
        description="Folders below which models and files may lie; a relative path is relative to "
        "the config file.",
    )


class SearchSection(Section):
    """How `inference-unlimited search` looks for better variants; nothing else reads it."""

    trials: int = Field(
        default=24,
        ge=1,
        le=100_000,
        description="Chains to build and judge, over all starts and all processes that share the "
        "study. Repetitions, and what is refused before it is built, are not counted.",
    )
    minutes: float | None = Field(
        default=None,
        gt=0,
        le=525_600,
        description="No trial begins after so many minutes. Unset: no limit.",
    )
    objectives: tuple[ObjectiveName, ...] = Field(
        default=(
            ObjectiveName.QUALITY,
            ObjectiveName.DECODE,
            ObjectiveName.PREFILL,
            ObjectiveName.MEMORY,
        ),
        min_length=1,
        max_length=6,
        description="What the front is over: mean KL to the original, tokens per second of one "
        "stream, of eight streams, and of a prompt, memory of the server, size of the files.",
    )
    seed: int = Field(default=0, ge=0, lt=1 << 31, description="Of everything that is drawn.")
    storage: FilePath | None = Field(
        default=None,
        description="A journal file, or a database's address such as `postgresql://HOST/NAME`, "
        "that machines share. Unset: a journal in the store.",
    )
    finalists: int = Field(
        default=6,
        ge=1,
        le=32,
        description="Variants that are measured again, and written, at most.",
    )
    rounds: int = Field(
        default=3,
        ge=1,
        le=100,
        description="How often each of them, and each hand-written variant, is measured again.",
    )

    @field_validator("objectives")
    @classmethod
    def _each_once(cls, names: tuple[ObjectiveName, ...]) -> tuple[ObjectiveName, ...]:
        if len(set(names)) < len(names):
            raise PydanticCustomError("twice", "an objective is named twice; name each once")
        return names


class LogSection(Section):
    """What is logged, and how."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severity that is logged."
    )
    format: Literal["auto", "console", "json"] = Field(
        default="auto",
        description="`console` for people, `json` for machines; `auto`: console on a "
        "terminal, else JSON.",
    )
    requests: bool = Field(
        default=False,
        description="One line per ended request, at level `info`: variant, status, tokens, times; "
        "never a prompt or a text.",
    )


class TelemetrySection(Section):
    """Traces of requests; needs the extra `tracing`."""

    otlp_endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://[^/\s]+/?$",
        max_length=2048,
        description="Where a collector takes OTLP over gRPC, such as `http://127.0.0.1:4317`; "
        "`https://` for TLS. Unset: what the standard variable `OTEL_EXPORTER_OTLP_ENDPOINT` says, "
        "and without it nothing is traced.",
    )
    sample_ratio: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="Share of the requests that are traced, of those whose caller has not decided "
        "it in its `traceparent`.",
    )


def _known_version(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool) and value > 1:
        raise ValueError(
            f"version {value} is of a later program, and this one reads version 1; install what "
            "the file was written for"
        )
    return value


class Config(Section):
    """Everything that can be configured."""

    version: Annotated[Literal[1], BeforeValidator(_known_version)] = Field(
        default=1,
        description="Of the form of this file. It is raised when a key is renamed or removed, or "
        "means something else; CHANGELOG says how a file is brought up to date.",
    )
    model: str = Field(
        min_length=1,
        max_length=4096,
        description="The original model: a Hugging Face hub id, a local folder, or `demo`.",
    )
    revision: str | None = Field(
        default=None,
        min_length=1,
        max_length=255,
        description="Hub commit, tag or branch. Unset: the newest, pinned in the manifest.",
    )
    calibration: TextFile | None = Field(
        default=None,
        description="Texts that stages may calibrate on. Unset: text sampled from the original "
        "model, made only when a stage needs it.",
    )
    evaluation: TextFile | None = Field(
        default=None,
        description="Texts that quality is measured on, disjoint from `calibration`. Unset: text "
        "sampled from the original model.",
    )
    budget: BudgetSection = Field(
        default=BudgetSection(),
        description="What every variant may lose against the original model, judged once on the "
        "finished artifact.",
    )
    variants: dict[VariantName, Annotated[VariantSection, BeforeValidator(_variant)]] = Field(
        min_length=1,
        max_length=64,
        description="Name of each variant and its chain: a list of stages (`[]` is the original "
        "model), or a mapping with `chain` and what else a variant has. The first is the default. "
        "Chains that are spaces (docs/searching.md) are for `inference-unlimited search`.",
    )
    traffic: dict[VariantName, Weight] = Field(
        default_factory=dict,
        max_length=64,
        description="Weight of each variant for requests that name none, and its share of the "
        "engine. Unset: the first variant takes them all, and shares are equal.",
    )
    engine: EngineSection = Field(
        default=EngineSection(),
        description="How requests share a variant's cache and the processor.",
    )
    server: ServerSection = Field(
        default=ServerSection(), description="Where the server listens and how it stops."
    )
    optimizer: OptimizerSection = Field(
        default=OptimizerSection(),
        description="How the optimizer, a program of its own, is run.",
    )
    search: SearchSection = Field(
        default=SearchSection(),
        description="How `inference-unlimited search` looks for better variants.",
    )
    admin: AdminSection = Field(
        default=AdminSection(),
        description="What chains that are sent to a running server may name.",
    )
    log: LogSection = Field(default=LogSection(), description="What is logged, and how.")
    telemetry: TelemetrySection = Field(
        default=TelemetrySection(), description="Traces of requests; off by default."
    )
    store: FilePath = Field(
        default="~/.cache/inference-unlimited",
        description="Folder of the artifact store.",
    )
    remote: str | None = Field(
        default=None,
        max_length=1024,
        pattern=r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[\w.=-]+)*/?$",
        description="Object store of artifacts, as `s3://BUCKET/PREFIX`: what `store` lacks is "
        "fetched from it, and `inference-unlimited build` publishes to it (docs/object-stores.md). "
        "Unset: none.",
    )
    offline: bool = Field(
        default=False, description="Never reach for the network; use the hub's local cache."
    )
