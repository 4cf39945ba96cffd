"""Who may ask what: every method of every service and every path, over real ports."""

from __future__ import annotations

import hmac
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import structlog
from google.protobuf import descriptor_pool, message_factory

from protos import inference_pb2 as pb
from protos import inference_pb2_grpc as pb_grpc
from protos import open_inference_pb2 as oip
from protos import open_inference_pb2_grpc as oip_grpc
from server.access import Access, Right, Token, peer_client
from server.config.access import SecretError, check_exposure
from server.config.fields import ServerSection
from server.errors import ListenError, Status, UnauthenticatedError
from server.http.errors import CODES as HTTP_CODES
from server.listeners import Listeners
from server.rpc.guard import RIGHTS
from server.rpc.status import CODES
from tests.server.security.conftest import Listen

Code = grpc.StatusCode
SECRETS = {right: f"secret-of-{right.value}-0123456789" for right in Right}
HEALTH = "grpc.health.v1.Health"


@pytest.fixture
def tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """One client for each right, and one that has them all; secrets in files and a variable."""
    sections: list[dict[str, Any]] = []
    for right, secret in SECRETS.items():
        file = tmp_path / right.value
        file.write_text(secret + "\n")
        sections.append({"client": right.value, "file": str(file), "rights": [right.value]})
    monkeypatch.setenv("SECRET_OF_ALL", "secret-of-all-0123456789")
    return [*sections, {"client": "all", "env": "SECRET_OF_ALL", "rights": list(Right)}]


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """Names of all services that servers register from now on."""
    names: set[str] = set()
    add = grpc.aio._server.Server.add_generic_rpc_handlers

    def spy(server: Any, handlers: Any) -> None:
        names.update(handler.service_name() for handler in handlers)
        add(server, handlers)

    monkeypatch.setattr(grpc.aio._server.Server, "add_generic_rpc_handlers", spy)
    return names


@pytest.fixture
async def listeners(
    registered: set[str], listen: Listen, tokens: list[dict[str, Any]]
) -> Listeners:
    """A server that asks for tokens."""
    del registered
    return await listen(tokens=tokens)


@pytest.fixture
async def channel(listeners: Listeners) -> AsyncIterator[grpc.aio.Channel]:
    """A client's connection to it."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{listeners.addresses.grpc_port}") as channel:
        yield channel


@pytest.fixture
async def client(listeners: Listeners) -> AsyncIterator[httpx.AsyncClient]:
    """A client of its HTTP API."""
    url = f"http://127.0.0.1:{listeners.addresses.http_port}"
    async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
        yield client


def _methods(services: set[str]) -> dict[str, Any]:
    """Descriptors of all methods of services, by full name."""
    pool = descriptor_pool.Default()
    return {
        f"/{name}/{method.name}": method
        for name in services
        for method in pool.FindServiceByName(name).methods
    }


async def _ask(channel: grpc.aio.Channel, method: Any, secret: str | None) -> tuple[Code, str]:
    """Call a method with an empty request; how it ended."""
    kind = (
        ("stream" if method.client_streaming else "unary")
        + "_"
        + ("stream" if method.server_streaming else "unary")
    )
    call = getattr(channel, kind)(
        f"/{method.containing_service.full_name}/{method.name}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
    )
    metadata = () if secret is None else (("authorization", f"Bearer {secret}"),)
    request = message_factory.GetMessageClass(method.input_type)()
    try:
        asked = iter([request]) if method.client_streaming else request
        answer = call(asked, metadata=metadata, timeout=10)
        if method.server_streaming:
            await answer.read()  # watches go on for ever
            answer.cancel()
        else:
            await answer
    except grpc.aio.AioRpcError as error:
        return error.code(), str(error.details())
    return Code.OK, ""


async def test_the_table_names_every_method_and_no_other(
    registered: set[str], listeners: Listeners
) -> None:
    """What the server registers and what the guard knows are the same, in both directions."""
    del listeners
    assert len(registered) >= 5
    assert set(RIGHTS) == set(_methods(registered))
    open_to_all = {name for name, right in RIGHTS.items() if right is None}
    assert open_to_all == set(_methods({HEALTH}))


async def test_every_method_asks_for_its_right(
    registered: set[str], channel: grpc.aio.Channel
) -> None:
    """Without a token, with an unknown one, without the right: refused; with it: answered."""
    refused = (Code.UNAUTHENTICATED, Code.PERMISSION_DENIED)
    for name, method in _methods(registered).items():
        right = RIGHTS[name]
        if right is None:
            assert (await _ask(channel, method, None))[0] not in refused, name
            continue
        for secret in (None, "x" * 40, SECRETS[right][:-1], SECRETS[right] + "x", ""):
            code, details = await _ask(channel, method, secret)
            assert code is Code.UNAUTHENTICATED, name
            assert not secret or secret not in details
        for other in set(Right) - {right}:
            code, details = await _ask(channel, method, SECRETS[other])
            assert code is Code.PERMISSION_DENIED, name
            assert f"needs the right {right.value!r}, and the token allows {other}" in details
            assert SECRETS[other] not in details
        for secret in (SECRETS[right], "secret-of-all-0123456789"):
            assert (await _ask(channel, method, secret))[0] not in refused, name


async def test_a_method_that_is_not_in_the_table_needs_admin(
    registered: set[str], channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forgetting a method closes it; the twin of the walk, with a planted gap."""
    name = "/inference_unlimited.v1.Inference/Generate"
    monkeypatch.setattr(
        "server.rpc.guard.RIGHTS", {key: value for key, value in RIGHTS.items() if key != name}
    )
    method = _methods(registered)[name]
    assert (await _ask(channel, method, SECRETS[Right.GENERATE]))[0] is Code.PERMISSION_DENIED
    assert (await _ask(channel, method, SECRETS[Right.ADMIN]))[0] is Code.INVALID_ARGUMENT


async def test_without_tokens_everybody_may_do_everything(
    registered: set[str], listen: Listen
) -> None:
    """On loopback, where nothing is configured."""
    addresses = (await listen()).addresses
    async with grpc.aio.insecure_channel(f"127.0.0.1:{addresses.grpc_port}") as channel:
        for name, method in _methods(registered).items():
            code, _ = await _ask(channel, method, None)
            assert code not in (Code.UNAUTHENTICATED, Code.PERMISSION_DENIED), name


_PATHS = (
    ("POST", "/v1/completions", Right.GENERATE),
    ("POST", "/v1/chat/completions", Right.GENERATE),
    ("GET", "/v1/models", Right.READ),
    ("GET", "/v1/models/baseline", Right.READ),
    ("GET", "/openapi.json", Right.READ),
    ("GET", "/v1/nothing", Right.GENERATE),
    ("DELETE", "/", Right.GENERATE),
)


@pytest.mark.parametrize(("verb", "path", "right"), _PATHS)
async def test_every_path_asks_for_its_right(
    client: httpx.AsyncClient, verb: str, path: str, right: Right
) -> None:
    """401 with WWW-Authenticate, 403, or an answer; unknown paths tell strangers nothing."""
    for value in (None, "", "Bearer", f"Basic {SECRETS[right]}", "Bearer " + "x" * 40):
        headers = {} if value is None else {"Authorization": value}
        answer = await client.request(verb, path, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert answer.json()["error"]["type"] == "authentication_error"
    for other in set(Right) - {right}:
        headers = {"Authorization": f"Bearer {SECRETS[other]}"}
        answer = await client.request(verb, path, headers=headers)
        assert answer.status_code == 403
        assert SECRETS[other] not in answer.text
    headers = {"Authorization": f"bearer {SECRETS[right]}"}
    answer = await client.request(verb, path, headers=headers)
    assert answer.status_code not in (401, 403)


async def test_each_path_of_the_application_was_asked(listeners: Listeners) -> None:
    """The list above names all routes there are."""
    assert listeners._http is not None
    application: Any = listeners._http._server.config.app
    while not hasattr(application, "routes"):  # inside of what stands before it
        application = application._application
    routes = {
        (method, route.path) for route in application.routes for method in route.methods - {"HEAD"}
    }
    asked = {(verb, path.replace("baseline", "{model}")) for verb, path, _ in _PATHS[:5]}
    assert asked == routes


async def test_the_right_client_is_told_to_the_engine(
    bench: Any, client: httpx.AsyncClient, channel: grpc.aio.Channel
) -> None:
    """Whose token it is travels with the request, over every way in."""
    every = {"Authorization": "Bearer secret-of-all-0123456789"}
    one = {"Authorization": f"Bearer {SECRETS[Right.GENERATE]}"}
    for headers in (every, one):
        await client.post("/v1/completions", headers=headers, json={"prompt": "a"})
        chat = {"messages": [{"role": "user", "content": "a"}]}
        await client.post("/v1/chat/completions", headers=headers, json=chat)
    metadata = (("authorization", f"Bearer {SECRETS[Right.GENERATE]}"),)
    stub = pb_grpc.InferenceStub(channel)
    await stub.Complete(pb.GenerateRequest(text="a"), metadata=metadata)
    async for _ in stub.Generate(pb.GenerateRequest(text="a"), metadata=metadata):
        pass
    infer = oip.ModelInferRequest(model_name="baseline")
    tensor = infer.inputs.add(name="text_input", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(b"a")
    open_stub = oip_grpc.GRPCInferenceServiceStub(channel)
    await open_stub.ModelInfer(infer, metadata=metadata)
    async for _ in open_stub.ModelStreamInfer(iter([infer]), metadata=metadata):
        pass
    clients = [submit.client for submit in bench.engine.submits]
    assert clients == ["all", "all", "generate", "generate", *["generate"] * 4]


async def test_anonymous_callers_are_told_apart_by_address(bench: Any, listen: Listen) -> None:
    """Two addresses of this machine are two clients, over gRPC and over HTTP alike."""
    addresses = (await listen()).addresses
    for source in ("127.0.0.1", "127.0.0.9"):
        transport = httpx.AsyncHTTPTransport(local_address=source)
        async with httpx.AsyncClient(transport=transport, trust_env=False) as client:
            url = f"http://127.0.0.1:{addresses.http_port}/v1/completions"
            spoofed = {"X-Forwarded-For": "10.0.0.1"}
            await client.post(url, json={"prompt": "a"}, headers=spoofed)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{addresses.grpc_port}") as channel:
        await pb_grpc.InferenceStub(channel).Complete(pb.GenerateRequest(text="a"))
    clients = [submit.client for submit in bench.engine.submits]
    assert clients == ["@127.0.0.1", "@127.0.0.9", "@127.0.0.1"]


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("10.1.2.3", "@10.1.2.3"),
        ("::ffff:10.1.2.3", "@10.1.2.3"),
        ("2001:db8::1", "@2001:db8::/64"),
        ("2001:db8::ffff:2", "@2001:db8::/64"),
        ("2001:db8:0:1::2", "@2001:db8:0:1::/64"),
        ("unix:/a/socket", "@unix:/a/socket"),
    ],
)
def test_a_network_is_one_client(address: str, client: str) -> None:
    """One machine may have any address of its IPv6 network."""
    assert peer_client(address) == client


def test_all_tokens_are_compared_whichever_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every check costs as many constant-time comparisons, of equal lengths."""
    compared: list[tuple[int, int]] = []
    compare = hmac.compare_digest

    def spy(left: bytes, right: bytes) -> bool:
        compared.append((len(left), len(right)))
        return compare(left, right)

    monkeypatch.setattr(hmac, "compare_digest", spy)
    access = Access([Token.of(f"c{n}", f"secret {n}", [Right.READ]) for n in range(5)])
    for secret in ("secret 0", "secret 4", "", "x" * 10_000, "s"):
        compared.clear()
        with suppress(UnauthenticatedError):
            access.client(f"Bearer {secret}", Right.READ)
        assert compared == [(32, 32)] * 5


async def test_secrets_are_in_no_log(client: httpx.AsyncClient, channel: grpc.aio.Channel) -> None:
    """Neither what was presented nor what is configured is written anywhere."""
    with structlog.testing.capture_logs() as logs:
        for secret in ("presented-" + "x" * 30, *SECRETS.values()):
            headers = {"Authorization": f"Bearer {secret}"}
            await client.post("/v1/completions", headers=headers, content=b"{")
            await client.get("/v1/models", headers=headers)
            method = _methods({"inference_unlimited.v1.Inference"})
            for one in method.values():
                await _ask(channel, one, secret)
    written = json.dumps(logs, default=repr)
    assert not [secret for secret in SECRETS.values() if secret in written]
    assert "presented-" not in written
    assert "secret" not in repr(Token.of("client", "a secret", [Right.READ]))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "holds 0 characters, which is no secret"),
        ("short", "holds 5 characters"),
        ("x" * 5000, "which is no secret"),
        ("ein Schlüssel, der lang genug ist", "characters that no header carries"),
    ],
)
async def test_what_is_no_secret_is_refused(
    listen: Listen, tmp_path: Path, content: str, problem: str
) -> None:
    """With the field and how to make one, and without the content."""
    file = tmp_path / "secret"
    file.write_text(content)
    with pytest.raises(SecretError, match=problem) as caught:
        await listen(tokens=[{"client": "a", "file": str(file)}])
    assert "server.tokens.0" in str(caught.value)
    assert "openssl rand -hex 32" in str(caught.value)
    assert len(content) < 5 or content not in str(caught.value)


async def test_two_clients_have_two_secrets(listen: Listen, tmp_path: Path) -> None:
    """Or nobody could say whose a request is."""
    file = tmp_path / "secret"
    file.write_text("x" * 32)
    sections = [{"client": name, "file": str(file)} for name in ("a", "b")]
    with pytest.raises(SecretError, match=r"server\.tokens\.1: b has the same secret as a"):
        await listen(tokens=sections)


async def test_missing_secrets_name_their_place(listen: Listen, tmp_path: Path) -> None:
    """A file that is not there, a variable that is not set."""
    with pytest.raises(SecretError, match=r"server\.tokens\.0\.file: .* cannot be read"):
        await listen(tokens=[{"client": "a", "file": str(tmp_path / "none")}])
    with pytest.raises(SecretError, match=r"server\.tokens\.0\.env: NOT_SET holds 0 characters"):
        await listen(tokens=[{"client": "a", "env": "NOT_SET"}])


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com"])  # noqa: S104
def test_a_public_address_needs_a_token_or_a_word(host: str) -> None:
    """Where others ask, somebody must have said who may."""
    with pytest.raises(ListenError) as caught:
        check_exposure(ServerSection(host=host))
    sentence = str(caught.value)
    assert f"server.host: others reach {host}, and nobody is asked for a token." in sentence
    assert "server.tokens" in sentence
    assert "server.allow_anonymous" in sentence
    check_exposure(ServerSection(host=host, allow_anonymous=True))
    token = {"client": "a", "env": "A"}
    check_exposure(ServerSection.model_validate({"host": host, "tokens": [token]}))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.5.5.5", "::1", "localhost", "LOCALHOST"])
def test_loopback_needs_none(host: str) -> None:
    """Whoever is on this machine may ask."""
    check_exposure(ServerSection(host=host))


def test_every_status_has_a_number() -> None:
    """Nothing that the core says is left without a word in HTTP."""
    assert set(HTTP_CODES) == set(CODES) == set(Status) - {Status.OK}
