"""What Triton's own client library sees of a server: one scenario, told in JSON.

Runs in an environment of its own: ``python triton_client.py HOST:PORT SCENARIO``. Imports nothing
of this project and judges nothing; the tests beside it do.
"""

from __future__ import annotations

import inspect
import json
import queue
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from itertools import pairwise
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

PROMPT = "def fibonacci(n):"
GREEDY = {"temperature": 0, "max_tokens": 16}
LONG = {"max_tokens": 900, "ignore_eos": True}

Answers = queue.Queue[tuple[Any, Any]]


def inputs(prompt: str, sampling: dict[str, Any], **flags: bool) -> list[triton.InferInput]:
    """As in the examples of Triton's backends for language models."""
    given = {
        "text_input": np.array([prompt.encode()], dtype=np.object_),
        "sampling_parameters": np.array([json.dumps(sampling).encode()], dtype=np.object_),
        **{name: np.array([flag]) for name, flag in flags.items()},
    }
    tensors = []
    for name, values in given.items():
        tensor = triton.InferInput(name, [1], "BOOL" if values.dtype == bool else "BYTES")
        tensor.set_data_from_numpy(values)
        tensors.append(tensor)
    return tensors


def text(result: triton.InferResult) -> str:
    return str(result.as_numpy("text_output")[0].decode())


def is_final(result: triton.InferResult) -> bool:
    return bool(result.get_response().parameters["triton_final_response"].bool_param)


def failure(error: InferenceServerException) -> dict[str, str]:
    return {"status": str(error.status()), "message": str(error.message())}


def refused(call: Callable[[], Any]) -> dict[str, str]:
    try:
        call()
    except InferenceServerException as error:
        return failure(error)
    return {"status": "none", "message": "it was answered"}


def meta(client: triton.InferenceServerClient) -> Any:
    described = client.get_model_metadata("int8", as_json=True)
    return {
        "tritonclient": version("tritonclient"),
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "models": [client.is_model_ready(name) for name in ("baseline", "int8", "routed")],
        "server": client.get_server_metadata(as_json=True)["name"],
        "inputs": [tensor["name"] for tensor in described["inputs"]],
        "outputs": [tensor["name"] for tensor in described["outputs"]],
    }


def infer(client: triton.InferenceServerClient) -> Any:
    flags = {
        "exclude_input_in_output": True,
        "return_finish_reason": True,
        "return_num_output_tokens": True,
        "return_cumulative_logprob": True,
    }
    found = {}
    for model in ("baseline", "int8", "int4", "routed"):
        result = client.infer(
            model,
            inputs(PROMPT, GREEDY, **flags),
            outputs=[triton.InferRequestedOutput("text_output")],
            request_id=f"of {model}",
            priority=1,
            timeout=60_000_000,
            client_timeout=60,
            compression_algorithm="gzip",
        )
        found[model] = {
            "id": result.get_response().id,
            "text": text(result),
            "finish_reason": result.as_numpy("finish_reason")[0].decode(),
            "tokens": int(result.as_numpy("num_output_tokens")[0]),
            "logprob": float(result.as_numpy("cumulative_logprob")[0]),
            "variant": result.get_response().parameters["variant"].string_param,
        }
    return found


def choices(client: triton.InferenceServerClient) -> Any:
    result = client.infer("baseline", inputs(PROMPT, {"n": 3, "seed": 7, "max_tokens": 8}))
    return [each.decode() for each in result.as_numpy("text_output")]


def asynchronous(client: triton.InferenceServerClient) -> Any:
    answers: Answers = queue.Queue()
    for _ in range(4):
        client.async_infer(
            "int8",
            inputs(PROMPT, GREEDY, exclude_input_in_output=True),
            callback=lambda result, error: answers.put((result, error)),
        )
    found = [answers.get(timeout=60) for _ in range(4)]
    return {"texts": [text(result) for result, error in found if error is None]}


def stream(client: triton.InferenceServerClient) -> Any:
    """Three requests to different models at once in one stream."""
    answers: Answers = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    models = ("baseline", "int8", "int4")
    for model in models:
        client.async_stream_infer(
            model,
            inputs(PROMPT, GREEDY, stream=True),
            request_id=model,
            enable_empty_final_response=model == "int4",
        )
    texts = dict.fromkeys(models, "")
    steps = dict.fromkeys(models, 0)
    empty_finals, errors, order, finals = 0, [], [], 0
    while finals < len(models):
        result, error = answers.get(timeout=60)
        if error is not None:
            errors.append(str(error))
            break
        model = result.get_response().id
        finals += is_final(result)
        if result.as_numpy("text_output") is None:
            empty_finals += 1
            continue
        order.append(model)
        texts[model] += text(result)
        steps[model] += 1
    client.stop_stream()
    alone = {model: text(client.infer(model, inputs(PROMPT, GREEDY))) for model in models}
    return {
        "texts": texts,
        "alone": {model: whole.removeprefix(PROMPT) for model, whole in alone.items()},
        "steps": steps,
        "empty_finals": empty_finals,
        "errors": errors,
        "left": answers.qsize(),
        "changes": sum(a != b for a, b in pairwise(order)),
    }


def errors(client: triton.InferenceServerClient) -> Any:
    answers: Answers = queue.Queue()

    def streamed(headers: dict[str, str] | None) -> dict[str, str]:
        client.start_stream(lambda result, error: answers.put((result, error)), headers=headers)
        client.async_stream_infer("nobody", inputs(PROMPT, GREEDY))
        _, error = answers.get(timeout=60)
        client.stop_stream()
        return failure(error)

    shaped = triton.InferInput("text_input", [2], "BYTES")
    shaped.set_data_from_numpy(np.array([b"a", b"b"], dtype=np.object_))
    memory = triton.InferInput("text_input", [1], "BYTES")
    memory.set_shared_memory("region", 8)
    return {
        "model": refused(lambda: client.infer("nobody", inputs(PROMPT, GREEDY))),
        "version": refused(lambda: client.infer("int8", inputs(PROMPT, {}), model_version="3")),
        "sampling": refused(lambda: client.infer("int8", inputs(PROMPT, {"top_p": 7}))),
        "name": refused(lambda: client.infer("int8", inputs(PROMPT, {}, strem=True))),
        "shape": refused(lambda: client.infer("int8", [shaped])),
        "memory": refused(lambda: client.infer("int8", [memory])),
        "sequence": refused(lambda: client.infer("int8", inputs(PROMPT, {}), sequence_id=5)),
        "timeout": refused(lambda: client.infer("int8", inputs(PROMPT, LONG), timeout=200_000)),
        "deadline": refused(lambda: client.infer("int8", inputs(PROMPT, LONG), client_timeout=0.5)),
        "in_stream": streamed(None),
        "as_status": streamed({"triton_grpc_error": "true"}),
        "config": refused(lambda: client.get_model_config("int8")),
        "statistics": refused(lambda: client.get_inference_statistics("int8")),
    }


def cancel(client: triton.InferenceServerClient) -> Any:
    """Leave a stream in the middle, and a whole answer."""
    answers: Answers = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    client.async_stream_infer("baseline", inputs(PROMPT, LONG, stream=True))
    first, _ = answers.get(timeout=60)
    client.stop_stream(cancel_requests=True)
    time.sleep(0.2)
    left = [answers.get_nowait() for _ in range(answers.qsize())]
    context = client.async_infer(
        "baseline",
        inputs(PROMPT, LONG),
        callback=lambda result, error: answers.put((result, error)),
    )
    time.sleep(0.3)
    context.cancel()
    _, error = answers.get(timeout=60)
    return {
        "first": text(first),
        "finals": sum(is_final(result) for result, _ in left if result is not None),
        "stream": [failure(error)["status"] for _, error in left if error is not None],
        "whole": failure(error),
    }


def repository(client: triton.InferenceServerClient) -> Any:
    def states() -> dict[str, str]:
        index = client.get_model_repository_index(as_json=True)["models"]
        return {model["name"]: model["state"] for model in index}

    found: dict[str, Any] = {"before": states()}
    found["routed"] = refused(lambda: client.unload_model("baseline"))
    client.unload_model("int4")
    found["unloaded"] = states()
    found["ready"] = client.is_model_ready("int4")
    found["infer"] = refused(lambda: client.infer("int4", inputs(PROMPT, GREEDY)))
    client.load_model("int4")
    client.load_model("int4")
    found["loaded"] = states()
    found["text"] = text(client.infer("int4", inputs(PROMPT, GREEDY)))
    found["config"] = refused(lambda: client.load_model("int4", config="{}"))
    return found


SCENARIOS = {
    name: scenario
    for name, scenario in list(globals().items())
    if inspect.isfunction(scenario) and list(inspect.signature(scenario).parameters) == ["client"]
}

if __name__ == "__main__":
    target, scenario = sys.argv[1:]
    with triton.InferenceServerClient(target) as connected:
        json.dump(SCENARIOS[scenario](connected), sys.stdout)
