"""The methods of ``inference_unlimited.v1.Admin``, each a few lines around the operations."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any, TypeVar

from pydantic import ValidationError

from protos import admin_pb2 as pb
from protos import admin_pb2_grpc as pb_grpc
from server.comparer import Comparer, Comparison
from server.config.fields import BudgetSection, Section, SpeculationSection
from server.config.speculations import drafts_from
from server.core import Core
from server.drafts import Choice
from server.errors import InvalidRequestError
from server.operations import Operations
from server.rpc.chains import read_chain, read_json
from server.rpc.status import answering, send
from server.rpc.variants import variant_message
from server.traffic import Shadow, Traffic

_Sent = TypeVar("_Sent", bound=Section)


class AdminService(pb_grpc.AdminServicer):
    """Names and order of the methods are the .proto's."""

    def __init__(self, core: Core, operations: Operations, comparer: Comparer) -> None:
        self._core = core
        self.operations = operations
        self._comparer = comparer

    async def LoadVariant(  # noqa: N802
        self, request: pb.LoadVariantRequest, context: Any
    ) -> None:
        """Load a variant; its state as it changes."""
        async with answering(self._core, context, "LoadVariant"):
            chain = read_chain(request.chain_json)
            budget = _budget(request.budget_json)
            speculation = _speculation(request.speculation_json)
            views = self.operations.load(request.name, chain, budget, speculation)
            async with aclosing(views):
                async for view in views:
                    is_default = view.name == self._core.default
                    await send(context, variant_message(view, is_default=is_default))

    async def UnloadVariant(  # noqa: N802
        self, request: pb.UnloadVariantRequest, context: Any
    ) -> pb.UnloadVariantResponse:
        """Unload a variant."""
        async with answering(self._core, context, "UnloadVariant"):
            await self.operations.unload(request.variant)
            return pb.UnloadVariantResponse()

    async def SetTraffic(  # noqa: N802
        self, request: pb.SetTrafficRequest, context: Any
    ) -> pb.Traffic:
        """Direct routed traffic."""
        async with answering(self._core, context, "SetTraffic"):
            shadow = None
            if request.HasField("shadow"):
                shadow = Shadow(request.shadow.candidate, request.shadow.fraction)
            return _message(self.operations.set_traffic(dict(request.weights), shadow))

    async def GetTraffic(  # noqa: N802
        self, request: pb.GetTrafficRequest, context: Any
    ) -> pb.Traffic:
        """Where routed traffic goes."""
        del request
        async with answering(self._core, context, "GetTraffic"):
            return _message(self.operations.traffic)

    async def Promote(self, request: pb.PromoteRequest, context: Any) -> pb.Traffic:  # noqa: N802
        """Give one variant all routed traffic."""
        async with answering(self._core, context, "Promote"):
            return _message(self.operations.promote(request.variant))

    async def Rollback(  # noqa: N802
        self, request: pb.RollbackRequest, context: Any
    ) -> pb.Traffic:
        """Take the latest change of traffic back."""
        del request
        async with answering(self._core, context, "Rollback"):
            return _message(self.operations.roll_back())

    async def Compare(  # noqa: N802
        self, request: pb.CompareRequest, context: Any
    ) -> pb.CompareResponse:
        """Two variants on this server's own traffic."""
        async with answering(self._core, context, "Compare"):
            baseline = self._core.variant(request.baseline).name
            candidate = self._core.variant(request.candidate).name
            if baseline == candidate:
                raise InvalidRequestError("candidate", "is the baseline itself", "name another")
            return _comparison(await self._comparer.compare(baseline, candidate))


def _budget(text: str) -> BudgetSection | None:
    """The fields of a budget that were sent; None for an empty text.

    Raises:
        InvalidRequestError: With all that is wrong with them.
    """
    if not text:
        return None
    return _section("budget", read_json("budget_json", text), BudgetSection)


def _speculation(text: str) -> Choice | None:
    """The speculation that was sent, which may be none; None for an empty text.

    Raises:
        InvalidRequestError: With all that is wrong with its fields.
    """
    if not text:
        return None
    value = read_json("speculation_json", text)
    if value is None:
        return Choice(None)
    return Choice(drafts_from(_section("speculation", value, SpeculationSection)))


def _section(name: str, value: Any, kind: type[_Sent]) -> _Sent:
    """A section of a variant in a config, as it was sent.

    Raises:
        InvalidRequestError: With all that is wrong with its fields.
    """
    try:
        return kind.model_validate(value)
    except ValidationError as failure:
        said = "; ".join(
            ": ".join(filter(None, (".".join(map(str, error["loc"])), error["msg"])))
            for error in failure.errors(include_url=False)
        )
        raise InvalidRequestError(f"{name}_json", said, f"see `{name}` in the config") from failure


def _message(traffic: Traffic) -> pb.Traffic:
    message = pb.Traffic(weights=traffic.weights)
    if traffic.shadow is not None:
        message.shadow.candidate = traffic.shadow.candidate
        message.shadow.fraction = traffic.shadow.fraction
    return message


def _comparison(found: Comparison) -> pb.CompareResponse:
    message = pb.CompareResponse(
        baseline=found.baseline,
        candidate=found.candidate,
        baseline_requests=found.baseline_requests,
        candidate_requests=found.candidate_requests,
        baseline_engine_seconds_per_token=found.baseline_engine_seconds_per_token,
        candidate_engine_seconds_per_token=found.candidate_engine_seconds_per_token,
        notes=found.notes,
    )
    for measure, estimate in found.latency_ratios.items():
        _fill(message.latency_ratios[measure], estimate)
    if (shadow := found.shadow) is not None:
        message.shadow.answers = shadow.answers
        message.shadow.positions = shadow.positions
        _fill(message.shadow.kl_lower_bound, shadow.kl_lower_bound)
        _fill(message.shadow.top1_agreement, shadow.top1_agreement)
        _fill(message.shadow.logprob_difference, shadow.logprob_difference)
    return message


def _fill(message: Any, estimate: Any) -> None:
    message.value = estimate.value
    if estimate.low is not None and estimate.high is not None:
        message.low, message.high = estimate.low, estimate.high
