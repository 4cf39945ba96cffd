"""Answers of the Open Inference Protocol: a request's outputs as tensors, whole or step by step.

Owns the outputs' names and what each holds: texts and counts are of the one response, the
log-probability is of the choice so far, and every tensor has one element for each choice. Knows
nothing of calls or streams.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from protos import open_inference_pb2 as oip
from server.calls import Finish, Output
from server.engine.messages import FinishReason
from server.rpc.infer_calls import VERSION, InferCall
from server.rpc.tensors import add_output

OUTPUTS: Mapping[str, str] = {
    "text_output": "BYTES",
    "finish_reason": "BYTES",
    "cumulative_logprob": "FP32",
    "num_input_tokens": "UINT32",
    "num_output_tokens": "UINT32",
}
"""The datatype of each."""


class InferAnswer:
    """The answer to one request; remembers what its responses held so far."""

    def __init__(self, request: oip.ModelInferRequest, asked: InferCall) -> None:
        self._request = request
        self._asked = asked
        self._count = asked.call.sampling.n or 1
        self._unfinished = self._count
        # As long as the count only with the first output, which says that it was accepted.
        self._logprobs: list[float] = []

    @property
    def is_whole(self) -> bool:
        """Whether every choice has ended."""
        return self._unfinished == 0

    def response(self, outputs: Sequence[Output]) -> oip.ModelInferResponse:
        """What some outputs of the core say, in the order in which they came."""
        response = empty_response(self._request)
        self._logprobs = self._logprobs or [0.0] * self._count
        texts = [""] * self._count
        reasons = [""] * self._count
        counts = [0] * self._count
        for output in outputs:
            texts[output.choice] += output.text
            counts[output.choice] += len(output.tokens)
            self._logprobs[output.choice] += sum(token.logprob or 0.0 for token in output.tokens)
            if output.finish is not None:
                self._unfinished -= 1
                reasons[output.choice] = _finish_reason(output.finish)
                response.parameters["variant"].string_param = output.finish.variant
                response.parameters["artifact"].string_param = output.finish.artifact
        values: dict[str, Sequence[Any]] = {
            "text_output": [text.encode() for text in texts],
            "finish_reason": [reason.encode() for reason in reasons],
            "cumulative_logprob": self._logprobs,
            "num_input_tokens": [outputs[0].prompt_tokens],
            "num_output_tokens": counts,
        }
        for name, datatype in OUTPUTS.items():
            if name in self._asked.outputs:
                add_output(response, name, datatype, values[name], raw=self._asked.raw)
        return response


def empty_response(request: oip.ModelInferRequest) -> oip.ModelInferResponse:
    """A response that says whose it is and nothing else."""
    return oip.ModelInferResponse(
        model_name=request.model_name, model_version=VERSION, id=request.id
    )


def _finish_reason(finish: Finish) -> str:
    """In OpenAI's words, which Triton's backends use too."""
    return "stop" if finish.reason is FinishReason.STOP else "length"
