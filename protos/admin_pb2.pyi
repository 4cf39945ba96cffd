from protos import inference_pb2 as _inference_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LoadVariantRequest(_message.Message):
    __slots__ = ("name", "chain_json", "budget_json", "speculation_json")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CHAIN_JSON_FIELD_NUMBER: _ClassVar[int]
    BUDGET_JSON_FIELD_NUMBER: _ClassVar[int]
    SPECULATION_JSON_FIELD_NUMBER: _ClassVar[int]
    name: str
    chain_json: str
    budget_json: str
    speculation_json: str
    def __init__(self, name: _Optional[str] = ..., chain_json: _Optional[str] = ..., budget_json: _Optional[str] = ..., speculation_json: _Optional[str] = ...) -> None: ...

class UnloadVariantRequest(_message.Message):
    __slots__ = ("variant",)
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    variant: str
    def __init__(self, variant: _Optional[str] = ...) -> None: ...

class UnloadVariantResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SetTrafficRequest(_message.Message):
    __slots__ = ("weights", "shadow")
    class WeightsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    SHADOW_FIELD_NUMBER: _ClassVar[int]
    weights: _containers.ScalarMap[str, float]
    shadow: Shadow
    def __init__(self, weights: _Optional[_Mapping[str, float]] = ..., shadow: _Optional[_Union[Shadow, _Mapping]] = ...) -> None: ...

class Shadow(_message.Message):
    __slots__ = ("candidate", "fraction")
    CANDIDATE_FIELD_NUMBER: _ClassVar[int]
    FRACTION_FIELD_NUMBER: _ClassVar[int]
    candidate: str
    fraction: float
    def __init__(self, candidate: _Optional[str] = ..., fraction: _Optional[float] = ...) -> None: ...

class Traffic(_message.Message):
    __slots__ = ("weights", "shadow")
    class WeightsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    SHADOW_FIELD_NUMBER: _ClassVar[int]
    weights: _containers.ScalarMap[str, float]
    shadow: Shadow
    def __init__(self, weights: _Optional[_Mapping[str, float]] = ..., shadow: _Optional[_Union[Shadow, _Mapping]] = ...) -> None: ...

class GetTrafficRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PromoteRequest(_message.Message):
    __slots__ = ("variant",)
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    variant: str
    def __init__(self, variant: _Optional[str] = ...) -> None: ...

class RollbackRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CompareRequest(_message.Message):
    __slots__ = ("baseline", "candidate")
    BASELINE_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_FIELD_NUMBER: _ClassVar[int]
    baseline: str
    candidate: str
    def __init__(self, baseline: _Optional[str] = ..., candidate: _Optional[str] = ...) -> None: ...

class CompareResponse(_message.Message):
    __slots__ = ("baseline", "candidate", "shadow", "latency_ratios", "baseline_requests", "candidate_requests", "baseline_engine_seconds_per_token", "candidate_engine_seconds_per_token", "notes")
    class LatencyRatiosEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Estimate
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Estimate, _Mapping]] = ...) -> None: ...
    BASELINE_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_FIELD_NUMBER: _ClassVar[int]
    SHADOW_FIELD_NUMBER: _ClassVar[int]
    LATENCY_RATIOS_FIELD_NUMBER: _ClassVar[int]
    BASELINE_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    BASELINE_ENGINE_SECONDS_PER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_ENGINE_SECONDS_PER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    baseline: str
    candidate: str
    shadow: ShadowComparison
    latency_ratios: _containers.MessageMap[str, Estimate]
    baseline_requests: int
    candidate_requests: int
    baseline_engine_seconds_per_token: float
    candidate_engine_seconds_per_token: float
    notes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, baseline: _Optional[str] = ..., candidate: _Optional[str] = ..., shadow: _Optional[_Union[ShadowComparison, _Mapping]] = ..., latency_ratios: _Optional[_Mapping[str, Estimate]] = ..., baseline_requests: _Optional[int] = ..., candidate_requests: _Optional[int] = ..., baseline_engine_seconds_per_token: _Optional[float] = ..., candidate_engine_seconds_per_token: _Optional[float] = ..., notes: _Optional[_Iterable[str]] = ...) -> None: ...

class ShadowComparison(_message.Message):
    __slots__ = ("answers", "positions", "kl_lower_bound", "top1_agreement", "logprob_difference")
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    KL_LOWER_BOUND_FIELD_NUMBER: _ClassVar[int]
    TOP1_AGREEMENT_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
    answers: int
    positions: int
    kl_lower_bound: Estimate
    top1_agreement: Estimate
    logprob_difference: Estimate
    def __init__(self, answers: _Optional[int] = ..., positions: _Optional[int] = ..., kl_lower_bound: _Optional[_Union[Estimate, _Mapping]] = ..., top1_agreement: _Optional[_Union[Estimate, _Mapping]] = ..., logprob_difference: _Optional[_Union[Estimate, _Mapping]] = ...) -> None: ...

class Estimate(_message.Message):
    __slots__ = ("value", "low", "high")
    VALUE_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    value: float
    low: float
    high: float
    def __init__(self, value: _Optional[float] = ..., low: _Optional[float] = ..., high: _Optional[float] = ...) -> None: ...
