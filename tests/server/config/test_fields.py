"""Every key of the configuration is bounded, described and in the reference."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from server import limits_page
from server.config.fields import Config, TransportSection
from server.config.reference import bounds, render, sections
from server.http.connection import ConnectionLimits
from server.limits import RequestLimits
from server.rpc.server import TransportLimits

REFERENCE = Path(__file__).parents[3] / "docs" / "configuration.md"


def every_field(model: type[BaseModel] = Config, path: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        yield f"{path}{name}", field
        for section in sections(field.annotation):
            yield from every_field(section, f"{path}{name}.")


def undescribed_or_unbounded(path: str, field: FieldInfo) -> list[str]:
    faults = []
    if not field.description or not field.description.rstrip().endswith("."):
        faults.append(f"{path} has no sentence that describes it")
    kinds = {field.annotation, *typing.get_args(field.annotation)}
    # A boolean, a section and a choice are bounded by their type.
    is_open = kinds & {str, int, float} and bool not in kinds
    is_choice = typing.get_origin(field.annotation) is typing.Literal
    if is_open and not is_choice and not bounds(field):
        faults.append(f"{path} has no bound")
    return faults


@pytest.mark.parametrize(("path", "field"), list(every_field()), ids=lambda value: str(value)[:60])
def test_every_field_is_described_and_bounded(path: str, field: FieldInfo) -> None:
    """A key that cannot be looked up, or takes any value, is refused."""
    assert undescribed_or_unbounded(path, field) == []


def test_the_walk_finds_a_field_without_bound_and_description() -> None:
    """The check itself can fail."""

    class Careless(BaseModel):
        size: int = 3

    faults = [
        fault
        for path, field in every_field(Careless)
        for fault in undescribed_or_unbounded(path, field)
    ]
    assert faults == ["size has no sentence that describes it", "size has no bound"]


def test_the_reference_shows_what_a_variant_has() -> None:
    """A mapping's sections are documented as any other."""
    assert "| `variants.NAME.speculation.adaptive` | `true` or `false` | `true` |" in render()
    assert "| `variants.NAME.budget` | as [`budget`](#budget) |" in render()


def test_the_reference_is_what_the_fields_say() -> None:
    """docs/configuration.md is generated; `make config-reference` brings it up to date."""
    assert REFERENCE.read_text(encoding="utf-8") == render()


def test_the_table_of_limits_is_what_the_code_says() -> None:
    """docs/limits.md is generated too."""
    page = REFERENCE.with_name("limits.md").read_text(encoding="utf-8")
    assert page == limits_page.render()


def test_transport_limits_are_the_listeners_own() -> None:
    """What is configured by default is what listeners without configuration have."""
    section = TransportSection()
    limits, connections = TransportLimits(), ConnectionLimits()
    assert (limits.max_streams, limits.max_calls) == (section.max_streams, section.max_calls)
    assert limits.max_connections == connections.most == section.max_connections
    assert limits.max_metadata_bytes == connections.header_bytes == section.max_metadata_bytes
    assert limits.handshake_s == connections.header_s == section.head_seconds
    assert limits.idle_s == connections.idle_s == section.idle_seconds
    assert connections.body_s == section.body_seconds
    assert connections.unread_s == section.unread_seconds


def test_configured_limits_are_the_core_s_limits() -> None:
    """Every bound on a request can be configured, and means the same by default."""
    limits = Config(model="demo", variants={"a": []}).server.limits
    assert RequestLimits(**limits.model_dump()) == RequestLimits()
