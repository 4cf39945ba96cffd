"""Bytes that are no protobuf, and fields whose JSON is none: the caller's error, everywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2

from protos import inference_pb2 as pb
from protos import open_inference_pb2 as oip

if TYPE_CHECKING:
    from tests.server.conftest import Bench

NO_MESSAGES = [b"\xff\xff\xff", b"\x0a\x05ab", b"\x12\x02\xff\xfe"]
"""No tag; a text that ends early; a text that is no UTF-8."""


def methods() -> list[tuple[str, bool, bool]]:
    found = []
    for file in (pb.DESCRIPTOR, oip.DESCRIPTOR, reflection_pb2.DESCRIPTOR):
        for service in file.services_by_name.values():
            found += [
                (f"/{service.full_name}/{m.name}", m.client_streaming, m.server_streaming)
                for m in service.methods
            ]
    return found


async def answer(
    channel: grpc.aio.Channel, method: str, content: bytes, *, sends: bool, streams: bool
) -> grpc.StatusCode:
    """Send bytes; the status."""
    if sends:
        call: Any = channel.stream_stream(method)(iter([content]), timeout=20)
    elif streams:
        call = channel.unary_stream(method)(content, timeout=20)
    else:
        call = channel.unary_unary(method)(content, timeout=20)
    code: grpc.StatusCode = await call.code()
    return code


@pytest.mark.parametrize(("method", "sends", "streams"), methods())
async def test_bytes_that_are_no_message_are_refused(
    channel: grpc.aio.Channel, bench: Bench, method: str, *, sends: bool, streams: bool
) -> None:
    """With one status, and without a word in the log."""
    for content in NO_MESSAGES[:2]:
        code = await answer(channel, method, content, sends=sends, streams=streams)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert bench.log == []


async def test_a_stream_is_told_what_follows_a_request_that_is_being_answered(
    channel: grpc.aio.Channel,
) -> None:
    """The answer on its way stays whole, so that the status can come after it."""
    method = "/inference.GRPCInferenceService/ModelStreamInfer"
    for _ in range(30):
        call: Any = channel.stream_stream(method)(iter([b"", NO_MESSAGES[0]]), timeout=20)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            [each async for each in call]
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_text_that_is_no_utf8_is_refused(channel: grpc.aio.Channel) -> None:
    """Field 2 of a request is its text."""
    method = "/inference_unlimited.v1.Inference/Generate"
    code = await answer(channel, method, NO_MESSAGES[2], sends=False, streams=True)
    assert code is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": "\\ud800"}', "surrogate"),
        ('{"a": NaN}', "NaN"),
        ("[" * 5000 + "]" * 5000, "levels deep"),
        ('{"a":' * 101 + "1" + "}" * 101, "levels deep"),
        ('{"a": ' + "1" * 5000 + "}", "digits"),
    ],
)
async def test_json_that_could_not_be_written_again_is_refused(
    stub: Any, text: str, said: str
) -> None:
    """Whatever a template or a log would stumble over later."""
    request = pb.ChatRequest(
        messages=[pb.ChatMessage(role="user", content="x")], template_arguments_json=text
    )
    with pytest.raises(grpc.aio.AioRpcError, match=said) as refused:
        await stub.CompleteChat(request)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_json_as_deep_as_may_be_is_taken(stub: Any) -> None:
    """The bound is where it is said to be."""
    text = '{"a":' * 99 + "[]" + "}" * 99
    request = pb.ChatRequest(
        messages=[pb.ChatMessage(role="user", content="x")], template_arguments_json=text
    )
    await stub.CompleteChat(request)
