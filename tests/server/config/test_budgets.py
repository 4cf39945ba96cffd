"""Each variant's budget: the config's, and the variant's own fields in their place."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.budget import Budget, OnBreach, When
from server.config.budgets import budget_of
from server.config.errors import ConfigError
from server.config.fields import Config
from server.config.sources import load

HEAD = "model: demo\n"


def read(folder: Path, text: str, **environment: str) -> Config:
    path = folder / "config.yaml"
    path.write_text(text, encoding="utf-8")
    named = {f"INFERENCE_UNLIMITED_{name}": value for name, value in environment.items()}
    return load(path, environment=named, flags={})


def errors_of(folder: Path, text: str) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        read(folder, text)
    return {one.path: f"{one.message} {one.remedy} {one.nearest}" for one in caught.value.errors}


def test_a_variant_overrides_what_it_names_and_inherits_the_rest(tmp_path: Path) -> None:
    """A looser limit for one variant needs no copy of the others."""
    config = read(
        tmp_path,
        HEAD + "budget: {kl_mean: 0.05, size_bytes: 10MiB, when: after_serving}\n"
        "variants:\n"
        "  plain: []\n"
        "  lean: {chain: [], budget: {kl_mean: 0.3, on_breach: rollback}}\n"
        "  large: {chain: [], budget: {size_bytes: null}}\n",
    )
    after, size = When.AFTER_SERVING, 10 << 20
    assert budget_of(config, "plain") == Budget(kl_mean=0.05, size_bytes=size, when=after)
    assert budget_of(config, "lean") == Budget(
        kl_mean=0.3, size_bytes=size, when=after, on_breach=OnBreach.ROLLBACK
    )
    assert budget_of(config, "large") == Budget(kl_mean=0.05, when=after)


def test_no_limit_is_no_budget(tmp_path: Path) -> None:
    """What is not configured is not judged."""
    config = read(tmp_path, HEAD + "variants: {a: [], b: {chain: [], budget: {kl_mean: 1}}}\n")
    assert budget_of(config, "a") is None
    assert budget_of(config, "b") == Budget(kl_mean=1)


def test_a_variable_for_a_variants_budget_leaves_its_chain(tmp_path: Path) -> None:
    """The short form of a variant is its chain, which must not be lost for a limit."""
    text = HEAD + "variants: {int8: [{quantize: {}}]}\n"
    config = read(tmp_path, text, VARIANTS__INT8__BUDGET__KL_MEAN="0.5")
    assert config.variants["int8"].chain == [{"quantize": {}}]
    assert budget_of(config, "int8") == Budget(kl_mean=0.5)


@pytest.mark.parametrize(
    ("text", "path", "said"),
    [
        ("variants: {a: {chain: [], budgt: {}}}", "variants.a.budgt", "Known keys here: budget"),
        (
            "variants: {a: {chain: [], budget: {kl_men: 1}}}",
            "variants.a.budget.kl_men",
            "kl_mean",
        ),
        ("variants: {a: {budget: {kl_mean: -1}}}", "variants.a.budget.kl_mean", "greater than 0"),
        ("variants: {a: []}\nbudget: {top1_agreement: 1.5}", "budget.top1_agreement", "1.5"),
        ("variants: {a: []}\nbudget: {kl_mean: .nan}", "budget.kl_mean", "nan"),
        (
            "variants: {a: []}\nbudget: {kl_mean: 1, on_breach: rolback}",
            "budget.on_breach",
            "'rollback'",
        ),
        ("variants: {a: []}\nbudget: {when: after_serving}", "budget", "sets no limit"),
        ("variants: {a: {budget: {on_breach: warn}}}", "variants.a.budget", "sets no limit"),
    ],
)
def test_a_wrong_budget_is_told_with_its_path(
    tmp_path: Path, text: str, path: str, said: str
) -> None:
    """What would silently judge nothing is refused."""
    errors = errors_of(tmp_path, f"{HEAD}{text}\n")
    assert list(errors) == [path]
    assert said in errors[path]


def test_settings_above_limits_of_variants_are_no_mistake(tmp_path: Path) -> None:
    """The limit may be the variant's, and what follows a breach everybody's."""
    text = "budget: {on_breach: warn}\nvariants: {a: {chain: [], budget: {kl_mean: 1}}, b: []}\n"
    config = read(tmp_path, HEAD + text)
    assert budget_of(config, "a") == Budget(kl_mean=1, on_breach=OnBreach.WARN)
    assert budget_of(config, "b") is None


@pytest.mark.parametrize("place", ["budget", "variants.a.budget"])
def test_a_perplexity_needs_a_text_of_users(tmp_path: Path, place: str) -> None:
    """On text that the original wrote it is only the original's entropy, and is not told."""
    limits = "budget: {perplexity_ratio: 1.1}"
    variant = f"{{chain: [], {limits}}}" if "." in place else "[]"
    text = f"variants: {{a: {variant}}}\n" + ("" if "." in place else limits + "\n")
    errors = errors_of(tmp_path, "model: owner/name\n" + text)
    assert list(errors) == [f"{place}.perplexity_ratio"]
    assert "evaluation.text" in errors[f"{place}.perplexity_ratio"]
    read(tmp_path, HEAD + text)  # the demo brings one
    read(tmp_path, "model: owner/name\nevaluation: {text: a.txt}\n" + text)
