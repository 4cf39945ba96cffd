"""What figures are made of: arrivals, prompts, texts that part, turns, selections."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from protos import inference_pb2 as pb
from server.comparison.divergence import Divergence, first_difference
from server.comparison.prompts import Prompts
from server.comparison.selection import budgets, select
from server.comparison.server_run import config_of
from server.comparison.speed import SpeedSettings
from server.comparison.streams import Stream, decode_rate
from server.config.errors import ConfigError
from server.config.sources import load


def stream(begun_s: float, *arrivals: tuple[float, int]) -> Stream:
    return Stream(begun_s, arrivals, tuple(range(sum(count for _, count in arrivals))), 0)


def test_decoding_leaves_prompts_out() -> None:
    """Four tokens in two seconds, whatever the first one took."""
    one = stream(0.0, (5.0, 1), (6.0, 2), (7.0, 2))
    assert decode_rate([one]) == 2.0
    assert one.first_token_s == 5.0
    assert one.gaps_s == (0.5, 0.5, 0.5, 0.5)


def test_streams_count_only_while_all_of_them_run() -> None:
    """From the last one's first token to the first one's last."""
    early = stream(0.0, (1.0, 1), (2.0, 1), (3.0, 1), (4.0, 1))
    late = stream(0.0, (2.0, 1), (3.0, 1), (4.0, 1), (5.0, 1))
    assert decode_rate([early, late]) == 2.0


def test_streams_that_never_meet_count_over_the_whole_time() -> None:
    """Also one that came in a single message."""
    assert decode_rate([stream(0.0, (1.0, 1), (2.0, 3)), stream(0.0, (3.0, 1), (4.0, 3))]) == 2.0
    assert decode_rate([stream(1.0, (3.0, 8))]) == 4.0


def test_prompts_are_alike_for_all_and_never_again() -> None:
    """The same purpose draws the same; another draws other beginnings, of the same length."""
    prompts = Prompts((tuple(range(50)), tuple(range(100, 130))))
    first = prompts.draw("alone 0 0", 2, 300)
    assert first == prompts.draw("alone 0 0", 2, 300)
    other = prompts.draw("alone 0 1", 2, 300)
    assert {len(prompt) for prompt in (*first, *other)} == {300}
    assert len({tuple(prompt[:4]) for prompt in (*first, *other)}) == 4


def test_beginnings_are_spread_over_documents() -> None:
    """Documents that are too short give none."""
    documents = tuple((index,) * 10 for index in range(8))
    prompts = Prompts((*documents, (99,)))
    assert prompts.beginnings(4, 5) == [[index] * 5 for index in (0, 2, 4, 6)]
    assert len(prompts.beginnings(20, 5)) == 8
    assert prompts.beginnings(3, 11) == []


@pytest.mark.parametrize(
    ("ours", "theirs", "index"),
    [((1, 2), (1, 2), None), ((1, 3), (1, 2), 1), ((1,), (1, 2), 1), ((1, 2), (), 0)],
)
def test_the_first_other_token(
    ours: tuple[int, ...], theirs: tuple[int, ...], index: int | None
) -> None:
    """The end of a text counts as a token."""
    assert first_difference(ours, theirs) == index


def test_the_median_lies_beyond_the_end_when_most_are_identical() -> None:
    """No number is invented for texts that never part."""
    assert Divergence((None, None, None, 3), 64).median_first is None
    assert Divergence((1, 5, None), 64).median_first == 5


def test_requests_fit_what_a_variant_can_take() -> None:
    """A short context, or a cache that eight streams share, shortens them."""
    small = SpeedSettings().within(pb.Limits(max_length=64, kv_budget_tokens=256))
    assert small.prompt_tokens + small.new_tokens <= 32
    assert small.long_prompt_tokens == 63
    roomy = pb.Limits(max_length=2048, kv_budget_tokens=100_000)
    assert SpeedSettings().within(roomy) == SpeedSettings()


def _config(tmp_path: Path, **content: Any) -> Any:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"model": "demo", **content}))
    return load(path, environment={}, flags={})


_VARIANTS = {
    "baseline": [],
    "int8": {"chain": [{"quantize": {"method": "dynamic"}}], "budget": {"kl_mean": 0.1}},
}


def test_one_variant_is_served_by_itself(tmp_path: Path) -> None:
    """On free ports of this machine, with the rest of the config, and whatever its budget says."""
    config = _config(
        tmp_path,
        variants=_VARIANTS,
        traffic={"int8": 1.0},
        budget={"kl_mean": 0.01},
        engine={"threads": 1, "kv_bytes": "1GiB"},
        server={"host": "0.0.0.0", "grpc_port": 4000},  # noqa: S104 - to be replaced
    )
    path = tmp_path / "derived.yaml"
    path.write_text(yaml.safe_dump(config_of(config, "int8")))
    derived = load(path, environment={}, flags={})
    assert list(derived.variants) == ["int8"]
    assert derived.engine == config.engine
    assert (derived.server.host, derived.server.grpc_port) == ("127.0.0.1", 0)
    assert budgets(derived) == {}
    assert derived.variants["int8"].chain == [{"quantize": {"method": "dynamic"}}]


def test_selected_variants_keep_the_configs_order_and_lose_their_budgets(tmp_path: Path) -> None:
    """What is over its budget is built and measured too."""
    config = _config(tmp_path, variants=_VARIANTS, budget={"kl_mean": 0.01})
    assert {name: budget.kl_mean for name, budget in budgets(config).items()} == {
        "baseline": 0.01,
        "int8": 0.1,
    }
    assert list(select(config, ["int8", "baseline"], "x").variants) == ["baseline", "int8"]
    assert budgets(select(config, None, "x")) == {}


def test_an_unknown_variant_is_named_with_the_nearest(tmp_path: Path) -> None:
    """As for every config error."""
    config = _config(tmp_path, variants=_VARIANTS)
    expected = re.escape("--variants: no variant 'int9'. Did you mean 'int8'?")
    with pytest.raises(ConfigError, match=expected):
        select(config, ["int9"], "x")
