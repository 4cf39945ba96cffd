"""The gRPC face under messages that nobody would write: each call ends well or is refused.

Never INTERNAL or UNKNOWN for what a caller sent, never a call without an end, never a dead server,
and the counters know of every answer.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protos import admin_pb2, inference_pb2, open_inference_pb2
from tests.survival.conftest import Survivor
from tests.survival.messages import broken, messages

CASES = int(os.environ.get("FUZZ_CASES", "10000"))  # of the slow test
LIMIT_S = 60.0  # of a call; it ends long before
FILES = (inference_pb2, open_inference_pb2, admin_pb2)
METHODS: Sequence[MethodDescriptor] = [
    method
    for file in FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]
GENERATING = frozenset({"Generate", "Complete", "Chat", "CompleteChat", "ModelInfer"})
OFTEN = [method for method in METHODS if method.name in GENERATING or "Stream" in method.name]
REFUSALS = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a call ended."""

    code: grpc.StatusCode
    details: str
    responses: list[Any]
    seconds: float


def tame(method: MethodDescriptor, message: Any) -> Any:
    """Keep what would make the test long, or take from it the variants that it asks."""
    if (sampling := getattr(message, "sampling", None)) is not None:
        sampling.max_tokens = min(sampling.max_tokens, 3) if sampling.HasField("max_tokens") else 3
    if method.name in ("UnloadVariant", "RepositoryModelUnload"):
        for field in ("variant", "model_name"):
            if hasattr(message, field) and getattr(message, field) in ("baseline", "int8"):
                setattr(message, field, "gone")
    # A chain that might be valid would be judged, and built, by a child: it is not let so far.
    if method.name == "LoadVariant" and message.name not in ("baseline", ""):
        message.name = "baseline" if is_list(message.chain_json) else message.name
    if method.name == "RepositoryModelLoad" and "chain" in message.parameters:
        message.model_name = "baseline"
    return message


def is_list(text: str) -> bool:
    try:
        return isinstance(json.loads(text or "0"), list)
    except (ValueError, RecursionError):
        return False


def valid(method: MethodDescriptor) -> Any:
    """A request that is answered."""
    message: Any = message_factory.GetMessageClass(method.input_type)()
    if method.name in ("Chat", "CompleteChat"):
        message.messages.add(role="user", content="x")
    elif method.name in ("Generate", "Complete"):
        message.text = "x"
    else:
        message.model_name = "baseline"
        tensor = message.inputs.add(name="text_input", datatype="BYTES", shape=[1])
        tensor.contents.bytes_contents.append(b"x")
        message.parameters["max_tokens"].int64_param = 3
    return message


def merged(message: Any, other: Any) -> Any:
    message.MergeFrom(other)
    return message


@st.composite
def calls(draw: Any) -> tuple[MethodDescriptor, list[bytes], bool]:
    """A method, what is sent to it, and whether that is messages."""
    method = draw(st.sampled_from(METHODS) | st.sampled_from(OFTEN))
    drawn = messages(method.input_type)
    if method in OFTEN and draw(st.integers(0, 3)):
        # Wrong everywhere is refused at once; wrong in one place goes further.
        few = messages(method.input_type, most_fields=2)
        drawn = few.map(lambda message: merged(valid(method), message))
    whole = drawn.map(lambda message: tame(method, message).SerializeToString())
    is_whole = draw(st.integers(0, 9)) > 0
    # Damage may make a valid chain, or a name, of what was none: only what can do no harm has it.
    harmless = "Load" not in method.name and "load" not in method.name
    one = whole if is_whole or not harmless else broken(whole)
    count = draw(st.integers(0, 3)) if method.client_streaming else 1
    return method, [draw(one) for _ in range(count)], is_whole or not harmless


def call(
    channel: grpc.Channel, method: MethodDescriptor, sent: list[bytes], *, as_status: bool = False
) -> Ended:
    """Make a call and wait for its end."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    read = message_factory.GetMessageClass(method.output_type).FromString
    metadata = (("triton_grpc_error", "true"),) if as_status else None
    begun = time.monotonic()
    responses: list[Any] = []
    options: dict[str, Any] = {"timeout": LIMIT_S, "metadata": metadata}
    try:
        if method.client_streaming:
            stream = channel.stream_stream(path, response_deserializer=read)
            responses.extend(stream(iter(sent), **options))
        elif method.server_streaming:
            stream = channel.unary_stream(path, response_deserializer=read)
            responses.extend(stream(sent[0], **options))
        else:
            unary = channel.unary_unary(path, response_deserializer=read)
            responses.append(unary(sent[0], **options))
    except grpc.RpcError as error:
        ended: Any = error
        return Ended(ended.code(), ended.details(), responses, time.monotonic() - begun)
    return Ended(grpc.StatusCode.OK, "", responses, time.monotonic() - begun)


def judge(method: MethodDescriptor, sent: list[bytes], ended: Ended) -> None:
    """Refuse any end but a good one."""
    assert ended.seconds < LIMIT_S, method.name
    # Its parameter `timeout` is a deadline that the caller draws.
    own_time = ended.code is grpc.StatusCode.DEADLINE_EXCEEDED and "Infer" in method.name
    is_good = ended.code is grpc.StatusCode.OK or ended.code in REFUSALS or own_time
    assert is_good, (method.name, ended.code, ended.details, sent)
    if ended.code is grpc.StatusCode.OK and method.name in ("Generate", "Chat"):
        choices = {response.choice for response in ended.responses}
        finished = [r.choice for r in ended.responses if r.HasField("finish")]
        assert sorted(finished) == sorted(choices)
    if method.name == "ModelStreamInfer" and ended.code is grpc.StatusCode.OK:
        final = "triton_final_response"
        finals = [r.infer_response.parameters[final].bool_param for r in ended.responses]
        assert sum(finals) == len(sent)
        assert "internal error" not in str(ended.responses)


@pytest.fixture(scope="module")
def channel(survivor: Survivor) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(survivor.server.target) as channel:
        yield channel


def fuzz(survivor: Survivor, channel: grpc.Channel, cases: int) -> None:
    """Make many calls; every one must end well, and all of them must be accounted for."""
    survivor.settle()
    before = survivor.ended()
    descriptors = survivor.process.num_fds()
    seen: Counter[tuple[str, str]] = Counter()
    answered = 0

    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(calls(), st.booleans())
    def each(drawn: tuple[MethodDescriptor, list[bytes], bool], as_status: bool) -> None:  # noqa: FBT001
        nonlocal answered
        method, sent, _ = drawn
        ended = call(channel, method, sent, as_status=as_status)
        seen[method.name, ended.code.name] += 1
        if method.name in GENERATING:
            answered += ended.code is grpc.StatusCode.OK
        elif method.name == "ModelStreamInfer":
            answered += sum(
                response.error_message == ""
                and response.infer_response.parameters["triton_final_response"].bool_param
                for response in ended.responses
            )
        judge(method, sent, ended)

    each()
    survivor.check()
    counted = survivor.ended() - before
    assert counted["ok"] == answered
    assert counted["internal"] == 0
    assert survivor.process.num_fds() <= descriptors + 4
    # A fuzz whose every call is refused would prove little.
    assert {name for name, _ in seen} >= {"Generate", "Chat", "ModelInfer", "SetTraffic"} or (
        cases < 200
    )
    assert any(code == "OK" for _, code in seen)
    print(sorted(seen.items()))  # noqa: T201 - for who looks


def test_random_messages_end_well(survivor: Survivor, channel: grpc.Channel) -> None:
    """A few hundred calls of all methods."""
    fuzz(survivor, channel, 100)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_ten_thousand_random_messages_end_well(survivor: Survivor, channel: grpc.Channel) -> None:
    """The same, for long."""
    fuzz(survivor, channel, CASES)


def test_every_method_is_drawn_from_its_descriptor(
    survivor: Survivor, channel: grpc.Channel
) -> None:
    """An empty message is answered or refused by each, so that none is left out by a typo."""
    for method in METHODS:
        sent = [] if method.client_streaming else [b""]
        if method.name in ("Rollback", "LoadVariant"):
            continue
        judge(method, sent, call(channel, method, sent))
    survivor.check()
