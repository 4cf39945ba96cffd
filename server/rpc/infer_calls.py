"""Requests of the Open Inference Protocol into calls, as Triton's LLM backends read them.

Inputs are ``text_input`` and, each optional, ``stream``, ``sampling_parameters`` (a JSON object),
``exclude_input_in_output``, ``return_finish_reason``, ``return_num_input_tokens``,
``return_num_output_tokens``, ``return_cumulative_logprob``; sampling may also be given by inputs or
by request parameters of the same names. Knows nothing of how answers are sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from protos import open_inference_pb2 as oip
from server.calls import GenerateCall
from server.errors import InvalidRequestError, UnknownVariantError
from server.json_request import JsonSampling, read
from server.json_text import read_json
from server.routing import ROUTED
from server.rpc.tensors import single_elements

VERSION = "1"
"""The one version of every model: a variant that changes gets another name."""

FLAGS: Mapping[str, str] = {
    "return_finish_reason": "finish_reason",
    "return_cumulative_logprob": "cumulative_logprob",
    "return_num_input_tokens": "num_input_tokens",
    "return_num_output_tokens": "num_output_tokens",
}
"""Which input asks for which output besides ``text_output``."""

INPUTS: Mapping[str, str] = {
    "text_input": "BYTES",
    "stream": "BOOL",
    "sampling_parameters": "BYTES",
    "exclude_input_in_output": "BOOL",
    **dict.fromkeys(FLAGS, "BOOL"),
}
"""The datatype of each input, besides those of sampling."""

_MOST_ENTRIES = 64  # more than there are names
_EMPTY_FINAL = "triton_enable_empty_final_response"
# What Triton's client library always sends, and only these values mean nothing.
_OF_SEQUENCES = ("sequence_id", "sequence_start", "sequence_end")


@dataclass(frozen=True, slots=True)
class InferCall:
    """One request of the protocol.

    Attributes:
        call: What the core is asked.
        streams: Whether each step is sent by itself.
        outputs: Names of the outputs that are wanted.
        raw: Whether outputs are written as bytes, as the inputs were.
        empty_final: Whether a last response without outputs follows the answer.
    """

    call: GenerateCall
    streams: bool
    outputs: frozenset[str]
    raw: bool
    empty_final: bool


def infer_call(
    request: oip.ModelInferRequest,
    *,
    received_s: float,
    remaining_s: float | None,
    client: str = "",
) -> InferCall:
    """Read a request.

    Raises:
        RequestError: A field is wrong.
    """
    check_version(request.model_version)
    for field in ("inputs", "outputs", "parameters"):
        if (count := len(getattr(request, field))) > _MOST_ENTRIES:
            raise InvalidRequestError(
                field, f"has {count} entries, and may have {_MOST_ENTRIES}", "send what is known"
            )
    inputs = dict(single_elements(request))
    parameters = {name: _value(value) for name, value in request.parameters.items()}
    if both := sorted(set(inputs) & set(parameters)):
        raise InvalidRequestError(
            f"parameters.{both[0][:64]}", "is set beside the input of this name", "send one of them"
        )
    text = inputs.pop("text_input", None)
    if not isinstance(text, str):
        raise InvalidRequestError(
            "inputs", "have no text_input of datatype BYTES", "send the prompt in it"
        )
    streams = _flag(inputs, "stream", unset=False)
    # As Triton's vLLM backend: a whole answer begins with its prompt unless told otherwise.
    echo = not _flag(inputs, "exclude_input_in_output", unset=streams)
    if echo and streams:
        raise InvalidRequestError(
            "exclude_input_in_output", "cannot be false in a stream", "leave it out"
        )
    wanted = {output for flag, output in FLAGS.items() if _flag(inputs, flag, unset=False)}
    outputs = _outputs(request, wanted)
    empty_final = _flag(parameters, _EMPTY_FINAL, unset=False, where="parameters")
    timeout_s = _timeout_s(parameters)
    for name in _OF_SEQUENCES:
        if parameters.pop(name, 0):
            raise InvalidRequestError(f"parameters.{name}", "is not served", "leave it out")
    sampling = _sampling(inputs, parameters)
    ends = [limit for limit in (remaining_s, timeout_s) if limit is not None]
    call = GenerateCall(
        prompt=text,
        received_s=received_s,
        variant=variant_of(request.model_name),
        sampling=sampling.sampling(logprobs=0 if "cumulative_logprob" in outputs else None),
        deadline_s=received_s + min(ends) if ends else None,
        echo=echo,
        truncate_prompt_tokens=sampling.truncate_prompt_tokens,
        priority=sampling.priority,
        response_format=sampling.format(),
        client=client,
    )
    raw = bool(request.raw_input_contents)
    return InferCall(call, streams, outputs, raw, empty_final)


def variant_of(model: str) -> str:
    """The variant of a model's name; empty for routed traffic."""
    return "" if model == ROUTED else model


def check_version(version: str) -> None:
    """Refuse any version but the one.

    Raises:
        UnknownVariantError: It is another.
    """
    if version not in ("", VERSION):
        raise UnknownVariantError(
            f"model_version: {version[:64]!r} is unknown; leave it empty or use {VERSION!r}."
        )


def _sampling(inputs: dict[str, Any], parameters: dict[str, Any]) -> JsonSampling:
    """From ``sampling_parameters``, then inputs and parameters of the same names."""
    written = inputs.pop("sampling_parameters", "{}")
    if not isinstance(written, str):
        raise InvalidRequestError(
            "inputs.sampling_parameters", "is not of datatype BYTES", "send a JSON object in it"
        )
    content = read_json("sampling_parameters", written)
    if not isinstance(content, dict):
        raise InvalidRequestError("sampling_parameters", "is no object", "send a JSON object")
    for where, given in (("inputs", inputs), ("parameters", parameters)):
        for name in given:
            if name not in JsonSampling.model_fields:
                known = ", ".join(INPUTS)
                raise InvalidRequestError(
                    f"{where}.{name[:64]}",
                    "is not known",
                    f"the inputs are {known} and the names of sampling",
                )
    return read(JsonSampling, {**content, **parameters, **inputs}, where="sampling_parameters")


def _outputs(request: oip.ModelInferRequest, wanted: set[str]) -> frozenset[str]:
    known = {"text_output", *FLAGS.values()}
    for output in request.outputs:
        for name in output.parameters:
            raise InvalidRequestError(
                f"outputs.{output.name[:64]}.parameters.{name[:64]}",
                "is not served",
                "leave it out; outputs come in the response",
            )
    asked = {output.name for output in request.outputs}
    if unknown := sorted(asked - known):
        raise InvalidRequestError(
            f"outputs.{unknown[0][:64]}", "is not known", f"use: {', '.join(sorted(known))}"
        )
    return frozenset((asked or {"text_output"}) | wanted)


def _timeout_s(parameters: dict[str, Any]) -> float | None:
    """Seconds of Triton's ``timeout``, which is in microseconds; 0 is none."""
    microseconds = parameters.pop("timeout", 0)
    if isinstance(microseconds, bool) or not isinstance(microseconds, int) or microseconds < 0:
        raise InvalidRequestError(
            "parameters.timeout", "is no whole number of microseconds", "send one of 0 or more"
        )
    return microseconds / 1e6 if microseconds else None


def _flag(values: dict[str, Any], name: str, *, unset: bool, where: str = "inputs") -> bool:
    """Take a flag out of the values."""
    value = values.pop(name, unset)
    if not isinstance(value, bool):
        raise InvalidRequestError(f"{where}.{name}", "is no boolean", "send it as one")
    return value


def _value(parameter: oip.InferParameter) -> Any:
    field = parameter.WhichOneof("parameter_choice")
    return None if field is None else getattr(parameter, field)
