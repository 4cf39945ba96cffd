"""The Open Inference Protocol over real gRPC: every method, input and parameter, one at a time."""

from __future__ import annotations

import asyncio
import threading
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from protos import open_inference_pb2 as oip
from protos import open_inference_pb2_grpc as oip_grpc
from server.catalog import VariantState
from server.engine.messages import FailureCode
from server.errors import OverloadedError
from server.rpc import infer_stream
from server.rpc.health import HealthService
from server.rpc.status import PUSHBACK
from tests.server.rpc.infer_requests import infer, outputs

if TYPE_CHECKING:
    from artifacts.tokenizer import Tokenizer
    from tests.server.conftest import Bench

pytestmark = pytest.mark.timeout(60)

TEXT = "def fibonacci(n):"


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> Any:
    """A client of the protocol."""
    return oip_grpc.GRPCInferenceServiceStub(channel)


@pytest.fixture
def said(bench: Bench, byte_level_tokenizer: Tokenizer) -> list[int]:
    """The ids of what the engine says to whatever it is asked, one per step."""
    ids = list(byte_level_tokenizer.encode(TEXT))
    bench.engine.script = lambda _: [[token] for token in ids]
    return ids


async def refused(stub: Any, request: oip.ModelInferRequest) -> str:
    """What an invalid request is told, after its status."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ModelInfer(request)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT, caught.value.details()
    return str(caught.value.details())


# Server and models.


async def test_the_server_lives_and_says_who_it_is(stub: Any) -> None:
    """Alive while it answers; name, version and the extensions that are served."""
    assert (await stub.ServerLive(oip.ServerLiveRequest())).live
    metadata = await stub.ServerMetadata(oip.ServerMetadataRequest())
    assert metadata.name == "inference-unlimited"
    assert metadata.version == version("inference-unlimited")
    assert list(metadata.extensions) == ["model_repository", "parameters"]


async def test_ready_is_what_health_says(stub: Any, health: HealthService) -> None:
    """Of the server and of each model; health is also what a drain turns off."""

    async def ready() -> tuple[bool, bool, bool]:
        models = [oip.ModelReadyRequest(name=name) for name in ("baseline", "int8")]
        return (
            (await stub.ServerReady(oip.ServerReadyRequest())).ready,
            *[(await stub.ModelReady(model)).ready for model in models],
        )

    assert await ready() == (False, False, False)
    health.set("", serving=True)
    health.set("int8", serving=True)
    assert await ready() == (True, False, True)
    health.close()
    assert await ready() == (False, False, False)


async def test_routed_is_ready_while_any_that_takes_traffic_is(
    bench: Bench, stub: Any, health: HealthService
) -> None:
    """The model of this name is whichever gets most of the traffic, not the first one."""
    health.set("int8", serving=True)
    routed = oip.ModelReadyRequest(name="routed")
    assert not (await stub.ModelReady(routed)).ready
    bench.catalog.traffic = {"baseline": 0.0, "slow": 0.8, "int8": 0.2}
    assert (await stub.ModelReady(routed)).ready
    bench.catalog.traffic = {"slow": 1.0}
    assert not (await stub.ModelReady(routed)).ready


async def test_metadata_names_inputs_and_outputs(stub: Any) -> None:
    """Of a variant and of routed traffic; the names are those that requests are read by."""
    for name in ("int8", "routed"):
        metadata = await stub.ModelMetadata(oip.ModelMetadataRequest(name=name, version="1"))
        assert (metadata.name, metadata.platform) == (name, "onnxruntime_onnx")
        assert list(metadata.versions) == ["1"]
        inputs = {tensor.name: (tensor.datatype, *tensor.shape) for tensor in metadata.inputs}
        assert inputs["text_input"] == ("BYTES", 1)
        assert inputs["stream"] == ("BOOL", 1)
        assert len(inputs) == 8
        given = {tensor.name: (tensor.datatype, *tensor.shape) for tensor in metadata.outputs}
        assert given == {
            "text_output": ("BYTES", -1),
            "finish_reason": ("BYTES", -1),
            "cumulative_logprob": ("FP32", -1),
            "num_input_tokens": ("UINT32", -1),
            "num_output_tokens": ("UINT32", -1),
        }


@pytest.mark.parametrize("name", ["nobody", "Routed"])
async def test_unknown_models_and_versions_are_not_found(stub: Any, name: str) -> None:
    """In every method that takes a name, with what there is."""
    calls = [
        stub.ModelReady(oip.ModelReadyRequest(name=name)),
        stub.ModelMetadata(oip.ModelMetadataRequest(name=name)),
        stub.ModelInfer(infer(model=name)),
        stub.ModelReady(oip.ModelReadyRequest(name="int8", version="2")),
        stub.ModelMetadata(oip.ModelMetadataRequest(name="int8", version="2")),
        stub.ModelInfer(oip.ModelInferRequest(model_name="int8", model_version="2")),
    ]
    for index, call in enumerate(calls):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        says = "use one of: baseline, int8" if index < 3 else "leave it empty or use '1'"
        assert says in str(caught.value.details())


async def test_index_lists_variants_and_routed_traffic(bench: Bench, stub: Any) -> None:
    """With state and reason, or those alone that are ready."""
    index = await stub.RepositoryIndex(oip.RepositoryIndexRequest())
    assert [(m.name, m.version, m.state, m.reason) for m in index.models] == [
        ("routed", "1", "READY", ""),
        ("baseline", "1", "READY", ""),
        ("int8", "1", "READY", ""),
        ("slow", "1", "LOADING", "building"),
        ("broken", "1", "UNAVAILABLE", "the disk is full"),
    ]
    index = await stub.RepositoryIndex(oip.RepositoryIndexRequest(ready=True))
    assert [m.name for m in index.models] == ["routed", "baseline", "int8"]
    bench.catalog.change("baseline", state=VariantState.UNLOADED)
    bench.catalog.traffic = {"int8": 1.0}
    index = await stub.RepositoryIndex(oip.RepositoryIndexRequest(ready=True))
    assert [m.name for m in index.models] == ["routed", "int8"]


async def test_repository_is_fixed_where_there_are_no_operations(stub: Any) -> None:
    """As in a server without an admin service."""
    for call in (
        stub.RepositoryModelLoad(oip.RepositoryModelLoadRequest(model_name="int8")),
        stub.RepositoryModelUnload(oip.RepositoryModelUnloadRequest(model_name="int8")),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION


# Whole answers.


@pytest.mark.parametrize("is_raw", [True, False], ids=["raw", "typed"])
async def test_infer_answers_in_the_form_it_was_asked(
    stub: Any, said: list[int], *, is_raw: bool
) -> None:
    """Prompt and text in one element, and who answered; raw for raw, typed for typed."""
    response = await stub.ModelInfer(infer("hello ", number="request 7", is_raw=is_raw))
    assert said
    assert (response.model_name, response.model_version) == ("baseline", "1")
    assert response.id == "request 7"
    assert bool(response.raw_output_contents) is is_raw
    assert outputs(response) == {"text_output": [f"hello {TEXT}"]}
    assert response.parameters["variant"].string_param == "baseline"
    assert response.parameters["artifact"].string_param


@pytest.mark.parametrize(("shape", "name"), [([], "a"), ([1], "b"), ([1, 1], "c"), ([1] * 5, "d")])
async def test_one_element_of_any_rank(
    stub: Any, said: list[int], shape: list[int], name: str
) -> None:
    """With a batch dimension or without."""
    request = infer(TEXT, number=name)
    del request.inputs[0].shape[:]
    request.inputs[0].shape.extend(shape)
    assert said
    assert (await stub.ModelInfer(request)).id == name


async def test_flags_choose_the_outputs(
    bench: Bench, stub: Any, said: list[int], byte_level_tokenizer: Tokenizer
) -> None:
    """Each flag brings its output; the prompt is left out of the text when told so."""
    everything = {
        "exclude_input_in_output": True,
        "return_finish_reason": True,
        "return_cumulative_logprob": True,
        "return_num_input_tokens": True,
        "return_num_output_tokens": True,
    }
    response = await stub.ModelInfer(infer(flags=everything))
    assert outputs(response) == {
        "text_output": [TEXT],
        "finish_reason": ["length"],
        "cumulative_logprob": [-0.5 * len(said)],
        "num_input_tokens": [len(byte_level_tokenizer.encode("hello"))],
        "num_output_tokens": [len(said)],
    }
    assert bench.engine.submits[0].sampling.logprobs == 0
    nothing = await stub.ModelInfer(infer(flags=dict.fromkeys(everything, False)))
    assert outputs(nothing) == {"text_output": [f"hello{TEXT}"]}
    assert bench.engine.submits[1].sampling.logprobs is None


async def test_outputs_may_be_named_instead(stub: Any, said: list[int]) -> None:
    """As the protocol has it; those of flags come beside them."""
    request = infer(flags={"return_num_output_tokens": True})
    request.outputs.add(name="finish_reason")
    assert outputs(await stub.ModelInfer(request)) == {
        "finish_reason": ["length"],
        "num_output_tokens": [len(said)],
    }


async def test_stop_is_told_apart_from_length(stub: Any, said: list[int]) -> None:
    """In OpenAI's words."""
    request = infer(
        sampling={"stop": ["(n"]},
        flags={"return_finish_reason": True, "exclude_input_in_output": True},
    )
    assert said
    assert outputs(await stub.ModelInfer(request)) == {
        "text_output": ["def fibonacci"],
        "finish_reason": ["stop"],
    }


async def test_choices_are_elements(bench: Bench, stub: Any) -> None:
    """N answers are n elements in order, each behind the prompt; seeds follow each other."""
    tokenizer = bench.catalog.views["baseline"].tokenizer
    assert tokenizer is not None
    texts = {5: "one", 6: " and two", 7: " three here"}
    bench.engine.script = lambda submit: [
        [token] for token in tokenizer.encode(texts[submit.sampling.seed])
    ]
    flags = {"return_num_output_tokens": True, "return_num_input_tokens": True}
    response = await stub.ModelInfer(infer("x", sampling={"n": 3, "seed": 5}, flags=flags))
    assert outputs(response) == {
        "text_output": [f"x{text}" for text in texts.values()],
        "num_output_tokens": [len(tokenizer.encode(text)) for text in texts.values()],
        "num_input_tokens": [1],
    }


async def test_routed_traffic_says_who_answered(bench: Bench, stub: Any, said: list[int]) -> None:
    """The response keeps the name that was asked for."""
    bench.catalog.traffic = {"int8": 1.0}
    assert said
    response = await stub.ModelInfer(infer(model="routed"))
    assert response.model_name == "routed"
    assert response.parameters["variant"].string_param == "int8"


# Sampling.


WRITTEN = {
    "temperature": 0.5,
    "top_k": 7,
    "top_p": 0.25,
    "min_p": 0.125,
    "repetition_penalty": 1.5,
    "presence_penalty": -1.5,
    "frequency_penalty": 0.75,
    "seed": 2**64 - 1,
    "max_tokens": 3,
    "min_tokens": 2,
}


@pytest.mark.parametrize("write", [lambda value: value, str], ids=["numbers", "strings"])
async def test_sampling_parameters_reach_the_engine(bench: Bench, stub: Any, write: Any) -> None:
    """One JSON object, with numbers as such or as strings."""
    sampling = {name: write(value) for name, value in WRITTEN.items()}
    await stub.ModelInfer(
        infer(sampling={**sampling, "logit_bias": {"9": write(-3.5)}, "ignore_eos": True})
    )
    found = bench.engine.submits[0].sampling
    assert {name: getattr(found, name) for name in WRITTEN} == WRITTEN
    assert found.logit_bias == ((9, -3.5),)
    assert found.ignore_eos


@pytest.mark.parametrize("is_raw", [True, False], ids=["raw", "typed"])
async def test_sampling_by_inputs_and_by_parameters(
    bench: Bench, stub: Any, *, is_raw: bool
) -> None:
    """Of the same names, of any datatype that holds the value; they override the JSON object."""
    await stub.ModelInfer(
        infer(
            is_raw=is_raw,
            sampling={"max_tokens": 9, "top_k": 9, "seed": 9},
            inputs={
                "max_tokens": ("INT32", 3),
                "temperature": ("FP32", 0.5),
                "top_p": ("FP64", 0.25),
                "ignore_eos": ("BOOL", True),
                "seed": ("UINT64", 2**64 - 1),
                "stop": ("BYTES", b"never"),
                "min_p": ("BYTES", b"0.125"),
            },
            parameters={"top_k": 7, "presence_penalty": "-1.5", "min_tokens": 2, "priority": 4},
        )
    )
    submit = bench.engine.submits[0]
    sampling = submit.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (3, 0.5, 0.25)
    assert (sampling.top_k, sampling.presence_penalty, sampling.min_tokens) == (7, -1.5, 2)
    assert (sampling.seed, sampling.min_p, sampling.ignore_eos) == (2**64 - 1, 0.125, True)
    assert submit.priority == 4


async def test_timeout_is_a_deadline_in_microseconds(bench: Bench, stub: Any) -> None:
    """The earlier of Triton's and gRPC's holds; 0 is none, and so is the end of days."""
    await stub.ModelInfer(infer(parameters={"timeout": 0}))
    await stub.ModelInfer(infer(parameters={"timeout": 30_000_000}))
    await stub.ModelInfer(infer(parameters={"timeout": 30_000_000}), timeout=20)
    await stub.ModelInfer(infer(parameters={"timeout": 2**63 - 1}))
    limits = [
        None if submit.deadline_s is None else submit.deadline_s - submit.received_s
        for submit in bench.engine.submits
    ]
    assert limits[0] is None
    assert limits[1] == pytest.approx(30)
    assert limits[2] is not None
    assert 10 < limits[2] < 25
    assert limits[3] == pytest.approx(2**63 / 1e6)


async def test_timeout_that_passes(bench: Bench, stub: Any, said: list[int]) -> None:
    """As with gRPC's own deadline."""
    bench.engine.gate = threading.Semaphore(1)
    assert said
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ModelInfer(infer(parameters={"timeout": 500_000}))
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert "the deadline passed after 1 tokens" in str(caught.value.details())


@pytest.mark.parametrize(
    "parameters",
    [
        {"sequence_id": 0, "sequence_start": False, "sequence_end": False},
        {"sequence_id": ""},
        {"priority": 0, "timeout": 0},
        {"triton_enable_empty_final_response": False},
    ],
)
async def test_what_clients_send_without_meaning_it(
    stub: Any, parameters: dict[str, Any], said: list[int]
) -> None:
    """Triton's parameters at their defaults say nothing."""
    assert said
    response = await stub.ModelInfer(infer(parameters=parameters))
    assert outputs(response)["text_output"] == [f"hello{TEXT}"]


async def test_content_type_of_an_input_says_nothing_new(stub: Any, said: list[int]) -> None:
    """It is a text, and always is here."""
    request = infer()
    request.inputs[0].parameters["content_type"].string_param = "str"
    assert said
    assert outputs(await stub.ModelInfer(request))["text_output"] == [f"hello{TEXT}"]


# What is refused.


def without_text() -> oip.ModelInferRequest:
    request = infer(sampling={})
    del request.inputs[0], request.raw_input_contents[0]
    return request


def changed(**of_the_first_input: Any) -> oip.ModelInferRequest:
    request = infer()
    for name, value in of_the_first_input.items():
        if name == "shape":
            del request.inputs[0].shape[:]
            request.inputs[0].shape.extend(value)
        else:
            setattr(request.inputs[0], name, value)
    return request


def with_raw(*contents: bytes) -> oip.ModelInferRequest:
    request = infer()
    del request.raw_input_contents[:]
    request.raw_input_contents.extend(contents)
    return request


def with_both_contents() -> oip.ModelInferRequest:
    request = infer()
    request.inputs[0].contents.bytes_contents.append(b"other")
    return request


def twice() -> oip.ModelInferRequest:
    request = infer(sampling={})
    request.inputs[1].name = "text_input"
    return request


def in_shared_memory() -> oip.ModelInferRequest:
    request = infer()
    request.inputs[0].parameters["shared_memory_region"].string_param = "mine"
    return request


def with_output(name: str, parameter: str = "") -> oip.ModelInferRequest:
    request = infer()
    output = request.outputs.add(name=name)
    if parameter:
        output.parameters[parameter].int64_param = 3
    return request


def with_text(content: str) -> oip.ModelInferRequest:
    return infer(inputs={"sampling_parameters": ("BYTES", content.encode())})


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        (oip.ModelInferRequest(), "inputs: have no text_input"),
        (without_text(), "inputs: have no text_input"),
        (infer(inputs={"text_input": ("INT32", 1)}), "inputs: have no text_input"),
        (changed(name="text"), "inputs: have no text_input"),
        (changed(datatype="STRING"), "inputs[0] (text_input): has an unknown datatype"),
        (changed(datatype="bytes"), "unknown datatype; use one of: BOOL, INT8"),
        (changed(datatype="FP32"), "does not hold one element of FP32"),
        (changed(shape=[2]), "inputs[0] (text_input): has shape [2]"),
        (changed(shape=[1, 0]), "has shape [1, 0]"),
        (changed(shape=[-1]), "has shape [-1]"),
        (with_raw(b""), "does not hold one element of BYTES"),
        (with_raw(b"\x05\0\0\0hell"), "does not hold one element of BYTES"),
        (with_raw(b"\x03\0\0\0hell"), "does not hold one element of BYTES"),
        (with_raw(b"\x01\0\0\0\xff"), "inputs[0] (text_input): is not UTF-8"),
        (with_raw(b"\x00\0\0\0", b""), "raw_input_contents: has 2 entries for 1 inputs"),
        (with_both_contents(), "inputs[0] (text_input).contents: is set beside raw_input_contents"),
        (twice(), "inputs[1] (text_input): is there twice"),
        (
            in_shared_memory(),
            "inputs[0] (text_input).parameters.shared_memory_region: is not serve",
        ),
        (with_output("text"), "outputs.text: is not known; use: cumulative_logprob, finish_reason"),
        (with_output("text_output", "classification"), "outputs.text_output.parameters.classifi"),
        (infer(inputs={"stream": ("BYTES", b"false")}), "inputs.stream: is no boolean"),
        (
            infer(inputs={"return_finish_reason": ("INT32", 1)}),
            "inputs.return_finish_reason: is no",
        ),
        (infer(inputs={"exclude_input_in_output": ("INT32", 0)}), "inputs.exclude_input_in_output"),
        (
            infer(flags={"stream": True, "exclude_input_in_output": False}),
            "exclude_input_in_output: cannot be false in a stream",
        ),
        (infer(inputs={"sampling_parameters": ("INT32", 1)}), "inputs.sampling_parameters: is not"),
        (with_text("{"), "sampling_parameters: is no valid JSON"),
        (with_text("[" * 100_000), "sampling_parameters: is nested more than 100 levels deep"),
        (with_text("1" * 5000), "sampling_parameters: is no valid JSON"),
        (with_text("[]"), "sampling_parameters: is no object"),
        (with_text("null"), "sampling_parameters: is no object"),
        (with_text('{"temperatur": 1}'), "sampling_parameters.temperatur: is not known here; did"),
        (with_text('{"top_k": "many"}'), "sampling_parameters.top_k: input should be a valid int"),
        (with_text('{"top_p": NaN}'), "sampling_parameters: is no valid JSON: NaN is none"),
        (with_text('{"stop": ["\\ud800"]}'), "sampling_parameters: is no valid JSON"),
        (with_text('{"\\uD800": 1}'), "sampling_parameters: is no valid JSON"),
        (with_text('{"n": 0}'), "sampling.n: "),
        (with_text('{"n": 100}'), "sampling.n: "),
        (with_text('{"n": 1000000000000000}'), "sampling.n: "),
        (infer(inputs={"temperatur": ("FP32", 1.0)}), "inputs.temperatur: is not known"),
        (infer(parameters={"temperatur": 1.0}), "parameters.temperatur: is not known"),
        (
            infer(inputs={"top_k": ("INT32", 2)}, parameters={"top_k": 3}),
            "parameters.top_k: is set",
        ),
        (infer(inputs={"temperature": ("FP32", -1.0)}), "sampling.temperature"),
        (infer(parameters={"priority": 5000}), "priority: "),
        (infer(parameters={"sequence_id": 7}), "parameters.sequence_id: is not served"),
        (infer(parameters={"sequence_start": True}), "parameters.sequence_start: is not served"),
        (infer(parameters={"timeout": -1}), "parameters.timeout: is no whole number of microsec"),
        (infer(parameters={"timeout": True}), "parameters.timeout: is no whole number of microsec"),
        (infer(parameters={"timeout": "1"}), "parameters.timeout: is no whole number of microsec"),
        (
            infer(parameters={"triton_enable_empty_final_response": "yes"}),
            "parameters.triton_enable_empty_final_response: is no boolean",
        ),
        (infer(parameters={f"p{i}": 1 for i in range(65)}), "parameters: has 65 entries"),
        (infer(inputs={f"i{i}": ("INT32", 1) for i in range(64)}), "inputs: has 65 entries"),
    ],
)
async def test_bad_requests_name_what_is_wrong(
    bench: Bench, stub: Any, request_: oip.ModelInferRequest, told: str
) -> None:
    """INVALID_ARGUMENT with the field, whether asked whole or in a stream; nothing is begun."""
    request_.model_name = "baseline"
    assert told in await refused(stub, request_)
    (response,) = [each async for each in stub.ModelStreamInfer(iter([request_]))]
    assert told in response.error_message
    assert response.infer_response.parameters["status"].string_param == "invalid_argument"
    assert not bench.engine.submits
    assert not bench.log  # nothing of it is our fault


# Streams.


async def drained(call: Any) -> None:
    async for _ in call:
        pass


def finals(responses: list[oip.ModelStreamInferResponse]) -> list[bool]:
    return [r.infer_response.parameters["triton_final_response"].bool_param for r in responses]


@pytest.mark.parametrize("is_raw", [True, False], ids=["raw", "typed"])
async def test_stream_has_a_response_for_each_step(
    stub: Any, said: list[int], *, is_raw: bool
) -> None:
    """Texts and counts are of the step, the log-probability of all so far, the last is final."""
    flags = {
        "stream": True,
        "return_finish_reason": True,
        "return_cumulative_logprob": True,
        "return_num_input_tokens": True,
        "return_num_output_tokens": True,
    }
    request = infer("x", number="7", flags=flags, is_raw=is_raw)
    responses = [each async for each in stub.ModelStreamInfer(iter([request]))]
    steps = [outputs(each.infer_response) for each in responses]
    assert "".join(step["text_output"][0] for step in steps) == TEXT
    assert [step["cumulative_logprob"][0] for step in steps] == [
        -0.5 * (index + 1) for index in range(len(said))
    ]
    assert [step["num_output_tokens"] for step in steps] == [[1]] * len(said)
    assert [step["num_input_tokens"] for step in steps] == [[1]] * len(said)
    assert [step["finish_reason"] for step in steps] == [[""]] * (len(said) - 1) + [["length"]]
    assert finals(responses) == [False] * (len(said) - 1) + [True]
    assert {(each.error_message, each.infer_response.id) for each in responses} == {("", "7")}
    last = responses[-1].infer_response
    assert last.parameters["variant"].string_param == "baseline"
    assert last.parameters["artifact"].string_param


@pytest.mark.parametrize("streams", [True, False])
async def test_empty_final_response_follows_when_asked(
    stub: Any, said: list[int], *, streams: bool
) -> None:
    """Then it alone is final."""
    request = infer(
        number="7",
        flags={"stream": streams},
        parameters={"triton_enable_empty_final_response": True},
    )
    responses = [each async for each in stub.ModelStreamInfer(iter([request]))]
    count = len(said) if streams else 1
    assert finals(responses) == [False] * count + [True]
    assert not responses[-1].infer_response.outputs
    assert responses[-1].infer_response.id == "7"


async def test_stream_of_a_whole_answer(stub: Any, said: list[int]) -> None:
    """Without the input ``stream`` a stream's answer is one response, with the prompt."""
    responses = [each async for each in stub.ModelStreamInfer(iter([infer("x ")]))]
    assert said
    assert [outputs(each.infer_response) for each in responses] == [{"text_output": [f"x {TEXT}"]}]
    assert finals(responses) == [True]


async def test_choices_in_a_stream_keep_their_place(bench: Bench, stub: Any) -> None:
    """Every response has n elements, and only those that a step brought hold text."""
    tokenizer = bench.catalog.views["baseline"].tokenizer
    assert tokenizer is not None
    texts = {5: " one", 6: " and two and a half"}
    bench.engine.script = lambda submit: [
        [token] for token in tokenizer.encode(texts[submit.sampling.seed])
    ]
    request = infer(
        sampling={"n": 2, "seed": 5},
        flags={"stream": True, "return_finish_reason": True, "return_cumulative_logprob": True},
    )
    responses = [each async for each in stub.ModelStreamInfer(iter([request]))]
    steps = [outputs(each.infer_response) for each in responses]
    for choice, text in enumerate(texts.values()):
        assert "".join(step["text_output"][choice] for step in steps) == text
        reasons = [step["finish_reason"][choice] for step in steps]
        assert sorted(reasons) == [""] * (len(reasons) - 1) + ["length"]
        logprobs = [step["cumulative_logprob"][choice] for step in steps]
        assert logprobs == sorted(logprobs, reverse=True)
        assert logprobs[-1] == -0.5 * len(tokenizer.encode(text))
    assert finals(responses) == [False] * (len(steps) - 1) + [True]


async def test_requests_of_a_stream_run_at_the_same_time(
    bench: Bench, stub: Any, said: list[int]
) -> None:
    """Each is answered as it goes, and is told apart by its id."""
    bench.engine.gate = threading.Semaphore(0)
    call = stub.ModelStreamInfer()
    for number in range(4):
        await call.write(infer(number=str(number), model="int8", flags={"stream": True}))
    await bench.until(lambda: len(bench.engine.running) == 4)
    bench.engine.gate.release(1000)
    await call.done_writing()
    texts: dict[str, str] = {}
    order: list[str] = []
    async for response in call:
        number = response.infer_response.id
        order.append(number)
        text = outputs(response.infer_response)["text_output"][0]
        texts[number] = texts.get(number, "") + text
    assert texts == dict.fromkeys("0123", TEXT)
    assert set(order[: len(said)]) == set("0123")  # not one after the other


async def test_more_requests_follow_answers(stub: Any, said: list[int]) -> None:
    """A stream stays open between requests, and ends when the caller has no more."""
    call = stub.ModelStreamInfer()
    assert said
    for number in range(3):
        await call.write(infer(number=str(number)))
        response = await call.read()
        assert response.infer_response.id == str(number)
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() == grpc.StatusCode.OK


async def test_an_error_in_a_stream_ends_its_request_alone(stub: Any, said: list[int]) -> None:
    """It is told with the request's id, its status and the final flag."""
    requests = [
        infer(number="bad", model="nobody"),
        infer(number="good"),
        infer(number="worse", inputs={"temperature": ("FP32", -1.0)}),
    ]
    call = stub.ModelStreamInfer(iter(requests))
    found = {each.infer_response.id: each async for each in call}
    assert said
    assert set(found) == {"bad", "good", "worse"}
    assert finals(list(found.values())) == [True] * 3
    assert "'nobody' is unknown" in found["bad"].error_message
    assert found["bad"].infer_response.parameters["status"].string_param == "not_found"
    assert found["bad"].infer_response.model_name == "nobody"
    assert "sampling.temperature" in found["worse"].error_message
    assert found["good"].error_message == ""
    assert outputs(found["good"].infer_response)["text_output"] == [f"hello{TEXT}"]
    assert await call.code() == grpc.StatusCode.OK


async def test_an_error_may_be_asked_for_as_a_status(
    bench: Bench, stub: Any, said: list[int]
) -> None:
    """Then it ends the stream, and whatever else ran in it."""
    bench.engine.gate = threading.Semaphore(1)
    call = stub.ModelStreamInfer(metadata=(("triton_grpc_error", "true"),))
    assert said
    await call.write(infer(flags={"stream": True}))
    assert (await call.read()).error_message == ""
    await call.write(infer(model="nobody"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    assert "'nobody' is unknown" in str(caught.value.details())
    await bench.until(lambda: not bench.engine.running and bench.core.unfinished == 0)
    assert not bench.log


@pytest.mark.parametrize("value", ["false", "TRUE", ""])
async def test_another_value_of_that_header_asks_for_nothing(stub: Any, value: str) -> None:
    """Only ``true`` does."""
    call = stub.ModelStreamInfer(
        iter([infer(model="nobody")]), metadata=(("triton_grpc_error", value),)
    )
    assert [bool(each.error_message) async for each in call] == [True]


@pytest.mark.parametrize("as_status", [True, False])
async def test_faults_of_ours_keep_their_detail(
    bench: Bench, stub: Any, said: list[int], *, as_status: bool
) -> None:
    """The caller gets the log's id and no more, be it the engine's fault or the core's."""
    metadata = (("triton_grpc_error", "true"),) if as_status else ()
    bench.engine.failures = {"r1": FailureCode.INTERNAL}
    assert said

    async def told() -> str:
        call = stub.ModelStreamInfer(iter([infer()]), metadata=metadata)
        if not as_status:
            (response,) = [each async for each in call]
            assert response.infer_response.parameters["status"].string_param == "internal"
            return str(response.error_message)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() == grpc.StatusCode.INTERNAL
        return str(caught.value.details())

    hint = "internal error; the server's log has the details under log_id=log-1"
    assert await told() == hint
    bench.catalog.change("baseline", manifest=None)
    assert await told() == hint
    assert [entry["event"] for entry in bench.log] == ["request_failed", "internal_error"]


async def test_a_stream_takes_so_many_requests(
    bench: Bench, stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One more is refused at once; the others go on, and then there is room again."""
    monkeypatch.setattr(infer_stream, "MOST_AT_A_TIME", 2)
    bench.engine.gate = threading.Semaphore(0)
    call = stub.ModelStreamInfer()
    for number in range(3):
        await call.write(infer("x", number=str(number)))
    response = await call.read()
    assert response.infer_response.id == "2"
    assert "the stream has 2 unfinished requests" in response.error_message
    assert response.infer_response.parameters["status"].string_param == "resource_exhausted"
    bench.engine.gate.release(1000)
    assert {(await call.read()).infer_response.id for _ in range(2)} == {"0", "1"}
    await call.write(infer("x", number="3"))
    assert (await call.read()).error_message == ""
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF


async def test_the_cap_may_be_asked_for_as_a_status(
    bench: Bench, stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the time after which to come back, as everywhere."""
    monkeypatch.setattr(infer_stream, "MOST_AT_A_TIME", 1)
    bench.engine.gate = threading.Semaphore(0)
    call = stub.ModelStreamInfer(metadata=(("triton_grpc_error", "true"),))
    for _ in range(2):
        await call.write(infer("x"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert dict(caught.value.trailing_metadata())[PUSHBACK] == "200"
    await bench.until(lambda: bench.core.unfinished == 0)


async def test_leaving_a_stream_frees_the_engine(bench: Bench, stub: Any, said: list[int]) -> None:
    """All of its requests, those that wait for a slot included."""
    bench.engine.gate = threading.Semaphore(2)
    call = stub.ModelStreamInfer()
    assert said
    for number in range(6):
        await call.write(infer(number=str(number), flags={"stream": True}))
    await bench.until(lambda: len(bench.engine.running) == 4 and len(bench.engine.waiting) == 2)
    await call.read()
    call.cancel()
    await bench.until(lambda: not (bench.engine.running or bench.engine.waiting))
    await bench.until(lambda: bench.core.unfinished == 0)
    assert len(bench.engine.cancels) == 6
    assert not bench.log


async def test_leaving_a_whole_answer_frees_the_engine(bench: Bench, stub: Any) -> None:
    """As everywhere."""
    bench.engine.gate = threading.Semaphore(1)
    call = stub.ModelInfer(infer("some words that take a while"))
    await bench.until(lambda: bench.engine.steps == 1)
    call.cancel()
    await bench.until(lambda: not bench.engine.running and bench.core.unfinished == 0)


async def test_a_reader_who_does_not_read_is_not_read_from(
    stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refusals do not pile up: the server stops taking requests until their answers are taken."""
    monkeypatch.setattr(infer_stream, "MOST_AT_A_TIME", 0)
    refusals: list[int] = []
    refuse = infer_stream._too_many

    def counted() -> OverloadedError:
        refusals.append(1)
        return refuse()

    monkeypatch.setattr(infer_stream, "_too_many", counted)
    call = stub.ModelStreamInfer()
    written: list[int] = []

    async def flood() -> None:
        for number in range(2000):
            await call.write(infer(number="x" * 20_000))
            written.append(number)

    task = asyncio.create_task(flood())
    before = -1
    while before != len(written):
        before = len(written)
        await asyncio.sleep(0.5)
    assert not task.done()  # 40 MB would go somewhere
    assert 0 < len(refusals) < 1000
    task.cancel()
    call.cancel()


async def test_the_deadline_of_a_stream_is_that_of_its_requests(
    bench: Bench, stub: Any, said: list[int]
) -> None:
    """The engine is told when nobody will want the answer any more."""
    bench.engine.gate = threading.Semaphore(1)
    assert said
    call = stub.ModelStreamInfer(iter([infer(flags={"stream": True})]), timeout=2)
    last: list[oip.ModelStreamInferResponse] = []
    code = grpc.StatusCode.OK
    try:
        async for response in call:
            last[:] = [response]
    except grpc.aio.AioRpcError as error:
        code = error.code()
    if code is grpc.StatusCode.OK:  # the server's own clock was first, and told it in the stream
        assert last[0].infer_response.parameters["status"].string_param == "deadline_exceeded"
    else:
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert bench.engine.submits[0].deadline_s is not None
    await bench.until(lambda: not bench.engine.running and bench.core.unfinished == 0)


async def test_a_draining_server_refuses(bench: Bench, stub: Any, said: list[int]) -> None:
    """Whole and in a stream; the protocol's clients look at readiness, which says no as well."""
    bench.core.drain()
    assert said
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ModelInfer(infer())
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    (response,) = [each async for each in stub.ModelStreamInfer(iter([infer()]))]
    assert "the server is draining" in response.error_message
    assert response.infer_response.parameters["status"].string_param == "unavailable"
