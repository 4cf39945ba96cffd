"""Loading and unloading models by the Open Inference Protocol: a face of the same operations."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from artifacts.protocol import FieldError, PlannedVariant
from protos import open_inference_pb2 as oip
from protos import open_inference_pb2_grpc as oip_grpc
from server.budget import Budget
from server.catalog import VariantState
from server.comparer import Comparer
from server.drafts import Drafts
from server.operations import Allowed, Operations
from server.rpc.admin import AdminService
from server.rpc.health import HealthService
from server.rpc.server import create_server
from server.variants import Variants

if TYPE_CHECKING:
    from tests.server.conftest import Bench, Views


class Lifecycle:
    """Brings variants up at once, or fails as told; remembers what it did."""

    def __init__(self, variants: Variants) -> None:
        self._variants = variants
        self.fails = ""
        self.done: list[str] = []

    async def bring_up(
        self, name: str, planned: PlannedVariant, budget: Budget | None, drafts: Drafts | None
    ) -> None:
        del planned, budget, drafts
        self.done.append(f"up {name}")
        self._variants.change(name, state=VariantState.BUILDING)
        if self.fails:
            self._variants.change(name, state=VariantState.FAILED, error=self.fails)
        else:
            self._variants.change(name, state=VariantState.READY)

    async def may_draft(self, drafter: str, planned: PlannedVariant) -> bool:
        raise NotImplementedError

    async def take_down(self, name: str) -> None:
        self.done.append(f"down {name}")
        self._variants.change(name, state=VariantState.UNLOADED)


class Planner:
    """Takes every chain, and remembers it."""

    def __init__(self) -> None:
        self.chains: list[tuple[str, Sequence[Any]]] = []

    async def __call__(
        self, name: str, chain: Sequence[Any]
    ) -> PlannedVariant | Sequence[FieldError]:
        self.chains.append((name, chain))
        return PlannedVariant(recipe="r" * 64, chain=tuple(chain))


@pytest.fixture
def variants(catalog: Views) -> Variants:
    """The catalog's variants where they can be changed."""
    variants = Variants(tuple(catalog.views), {}, clock=lambda: 0.0)
    for name, view in catalog.views.items():
        variants.change(name, state=view.state, error=view.error)
    return variants


@pytest.fixture
def lifecycle(variants: Variants) -> Lifecycle:
    return Lifecycle(variants)


@pytest.fixture
def planner() -> Planner:
    return Planner()


@pytest.fixture
async def stub(
    bench: Bench, variants: Variants, lifecycle: Lifecycle, planner: Planner
) -> AsyncIterator[Any]:
    """A client of a server whose variants can be changed."""
    operations = Operations(
        variants,
        lifecycle,
        planner,
        bench.engine.post,
        allowed=Allowed(),
        chains={"int8": [{"quantize": {"bits": 8}}]},
        budgets={},
        budget=lambda _: None,
        drafts={},
        added=lambda _: None,
    )
    admin = AdminService(bench.core, operations, Comparer(lambda _: None))
    health = HealthService()
    server, port = create_server(bench.core, health, host="127.0.0.1", port=0, admin=admin)
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield oip_grpc.GRPCInferenceServiceStub(channel)
    health.close()
    await server.stop(0)


def load(name: str, **parameters: Any) -> oip.RepositoryModelLoadRequest:
    request = oip.RepositoryModelLoadRequest(model_name=name)
    for key, value in parameters.items():
        field = "string_param" if isinstance(value, str) else "int64_param"
        setattr(request.parameters[key], field, value)
    return request


def unload(name: str) -> oip.RepositoryModelUnloadRequest:
    request = oip.RepositoryModelUnloadRequest(model_name=name)
    request.parameters["unload_dependents"].bool_param = False  # Triton's client always says so
    return request


async def refused(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), str(caught.value.details())


async def test_a_variant_is_unloaded_and_loaded_again(
    stub: Any, lifecycle: Lifecycle, planner: Planner
) -> None:
    """With the chain that it had; what is loaded already stays as it is."""
    await stub.RepositoryModelLoad(load("int8"))
    assert lifecycle.done == []
    await stub.RepositoryModelUnload(unload("int8"))
    await stub.RepositoryModelLoad(load("int8"))
    assert lifecycle.done == ["down int8", "up int8"]
    assert planner.chains == [("int8", [{"quantize": {"bits": 8}}])]


async def test_a_new_variant_comes_with_its_chain(
    stub: Any, variants: Variants, planner: Planner
) -> None:
    """As with the admin service's LoadVariant."""
    chain = [{"quantize": {"bits": 4}}]
    await stub.RepositoryModelLoad(load("int4", chain_json=json.dumps(chain)))
    assert planner.chains == [("int4", chain)]
    view = variants.get("int4")
    assert view is not None
    assert view.state is VariantState.READY


async def test_a_load_that_fails_says_why(stub: Any, lifecycle: Lifecycle) -> None:
    """The caller waits for the end, and is told what came of it."""
    lifecycle.fails = "the disk is full."
    code, details = await refused(stub.RepositoryModelLoad(load("new", chain_json="[]")))
    assert (code, details) == (grpc.StatusCode.FAILED_PRECONDITION, "the disk is full.")


@pytest.mark.parametrize(
    ("request_", "code", "told"),
    [
        (load("new"), grpc.StatusCode.INVALID_ARGUMENT, "chain_json: is not set"),
        (load(""), grpc.StatusCode.INVALID_ARGUMENT, "name: '' is no name of a variant"),
        (load("routed", chain_json="[]"), grpc.StatusCode.INVALID_ARGUMENT, "'routed' is no name"),
        (load("int8", chain_json="[]"), grpc.StatusCode.ALREADY_EXISTS, "unload it first"),
        (load("new", chain_json="{}"), grpc.StatusCode.INVALID_ARGUMENT, "chain_json: is no array"),
        (load("new", chain_json="["), grpc.StatusCode.INVALID_ARGUMENT, "chain_json: is no valid"),
        (load("new", chain_json=1), grpc.StatusCode.INVALID_ARGUMENT, "chain_json: is no string"),
        (load("int8", config="{}"), grpc.StatusCode.INVALID_ARGUMENT, "parameters.config: is not"),
        (
            load("new", chain_json='[{"substitute": {"model": "/etc"}}]'),
            grpc.StatusCode.INVALID_ARGUMENT,
            "names '/etc', which lies outside",
        ),
        (unload("nobody"), grpc.StatusCode.NOT_FOUND, "use one of: baseline, int8, slow, broken"),
        (unload("routed"), grpc.StatusCode.NOT_FOUND, "'routed' is unknown"),
        (unload("baseline"), grpc.StatusCode.FAILED_PRECONDITION, "takes routed traffic"),
        (unload("broken"), grpc.StatusCode.FAILED_PRECONDITION, "does not serve: it is failed"),
    ],
)
async def test_refusals_name_what_is_wrong(
    stub: Any, lifecycle: Lifecycle, request_: Any, code: grpc.StatusCode, told: str
) -> None:
    """Before anything is begun."""
    loads = isinstance(request_, oip.RepositoryModelLoadRequest)
    call = (stub.RepositoryModelLoad if loads else stub.RepositoryModelUnload)(request_)
    found, details = await refused(call)
    assert (found, told in details) == (code, True), details
    assert lifecycle.done == []
