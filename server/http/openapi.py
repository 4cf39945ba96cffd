"""The OpenAPI document of the HTTP API, made from the models that requests are read with.

Owns what the document says beside requests: paths, statuses and the shape of errors. Knows nothing
of how requests are answered.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from typing import Any

from pydantic.json_schema import models_json_schema

from server.errors import Status
from server.http.errors import CODES
from server.http.requests import ChatRequest, CompletionRequest

_SCHEMAS = "#/components/schemas/"
_WHY = {
    400: "A field is wrong; the sentence names it and what to use instead.",
    401: "No token that is known was presented.",
    403: "The token does not allow this.",
    404: "No model has this name.",
    409: "Not now: something else must be done first.",
    429: "Too many requests; Retry-After says when to come back.",
    500: "An error of the server; its log has the details under the id in the sentence.",
    503: "The server is stopping, or the model is not ready.",
    504: "The time allowed has passed.",
}
_OBJECT = {"type": "object"}
_ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_GENERATED = (
    Status.INVALID_ARGUMENT,
    Status.NOT_FOUND,
    Status.FAILED_PRECONDITION,
    Status.RESOURCE_EXHAUSTED,
    Status.UNAVAILABLE,
    Status.DEADLINE_EXCEEDED,
)
_ASKED = (Status.UNAUTHENTICATED, Status.PERMISSION_DENIED)


@cache
def document() -> dict[str, Any]:
    """The document, as values of JSON; not to be changed."""
    _, schemas = models_json_schema(
        [(CompletionRequest, "validation"), (ChatRequest, "validation")],
        ref_template=_SCHEMAS + "{model}",
    )
    return {
        "openapi": "3.1.0",
        "info": {"title": "inference-unlimited", "version": version("inference-unlimited")},
        "paths": {
            "/v1/completions": {"post": _generating("completion", "CompletionRequest")},
            "/v1/chat/completions": {"post": _generating("chat", "ChatRequest")},
            "/v1/models": {"get": _reading("models", "All models.")},
            "/v1/models/{model}": {
                "get": {
                    **_reading("model", "One model.", Status.NOT_FOUND),
                    "parameters": [
                        {
                            "name": "model",
                            "in": "path",
                            "required": True,
                            "schema": {"type": "string"},
                        }
                    ],
                }
            },
        },
        "components": {
            "schemas": {**schemas["$defs"], "Error": _ERROR},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }


def _generating(name: str, request: str) -> dict[str, Any]:
    return {
        "operationId": name,
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": _SCHEMAS + request}}},
        },
        "responses": {
            "200": {
                "description": "The answer; events if `stream` was set.",
                "content": {
                    "application/json": {"schema": _OBJECT},
                    "text/event-stream": {"schema": {"type": "string"}},
                },
            },
            **_errors(*_GENERATED),
        },
    }


def _reading(name: str, what: str, *statuses: Status) -> dict[str, Any]:
    return {
        "operationId": name,
        "responses": {
            "200": {"description": what, "content": {"application/json": {"schema": _OBJECT}}},
            **_errors(*statuses),
        },
    }


def _errors(*statuses: Status) -> dict[str, Any]:
    """Answers of an error each; an error of ours may always be."""
    codes = sorted(CODES[status] for status in (*_ASKED, *statuses, Status.INTERNAL))
    content = {"application/json": {"schema": {"$ref": _SCHEMAS + "Error"}}}
    return {str(code): {"description": _WHY[code], "content": content} for code in codes}
