"""Takes units out of a torch module, so that a narrower one of the same architecture is left.

Owns the slicing, the config's fields, and the check that transformers builds from the config what
comes out. Knows nothing of which layers there are and of why a unit goes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from optimizers.dimensions import Axes, Space, Widths
from optimizers.errors import StageError

_FFN_FIELDS = ("intermediate_size", "ffn_dim", "n_inner")


def narrow(module: Any, axes: Axes, kept: Mapping[Space, Any], config: Any) -> None:
    """Take units out of a module in place; only its parameters and config are right afterwards.

    Args:
        module: What the axes are of.
        axes: Its dimensions.
        kept: By space, the units that stay, in ascending order; a space that is not named stays.
        config: Says how wide it is afterwards.

    Raises:
        StageError: The config asks for parameters of other shapes than come out.
    """
    import torch

    made: dict[int, tuple[Any, Any]] = {}  # a tied parameter, met again, must stay one
    for path, owner, key, parameter in _parameters(module):
        if id(parameter) not in made:
            tensor = parameter.detach()
            for place, axis in enumerate(axes.get(path, ())):
                if axis is not None and axis.space in kept:
                    stays = torch.isin(axis.units, kept[axis.space])
                    tensor = tensor.index_select(place, stays.nonzero().flatten())
            narrowed = torch.nn.Parameter(tensor.contiguous(), requires_grad=False)
            made[id(parameter)] = parameter, narrowed
        setattr(owner, key, made[id(parameter)][1])
    module.config = config
    _check_shapes(module, config)


def narrowed_config(config: Any, widths: Widths) -> Any:
    """A config of other widths.

    Raises:
        StageError: The architecture refuses them.
    """
    from huggingface_hub.errors import StrictDataclassError

    fields: dict[str, Any] = {
        "hidden_size": widths.hidden,
        "num_attention_heads": widths.heads,
        "num_key_value_heads": widths.kv_groups,
        **dict.fromkeys(_FFN_FIELDS, widths.ffn),
    }
    if getattr(config, "word_embed_proj_dim", None) == config.hidden_size:
        fields["word_embed_proj_dim"] = widths.hidden
    changes = {key: value for key, value in fields.items() if hasattr(config, key)}
    if hasattr(config, "head_dim") or widths.hidden != widths.heads * widths.head_dim:
        changes["head_dim"] = widths.head_dim
    names = config.attribute_map  # some configs keep a field under a name of their own
    changes = {names.get(key, key): value for key, value in changes.items()}
    try:
        return type(config).from_dict({**config.to_dict(), **changes})
    except (ValueError, TypeError, StrictDataclassError) as error:
        reason = str(error).strip().splitlines()[-1].strip().rstrip(".")
        untied = [
            str(groups)
            for groups in range(widths.kv_groups, 0, -1)
            if hasattr(config, "head_dim")
            and widths.hidden % (groups * widths.heads_per_group) == 0
        ]
        remedy = f"With hidden at {widths.hidden}, kv_groups may be {' or '.join(untied)}."
        raise _refusal(
            config, reason, remedy if untied else _tied(widths.heads, widths.head_dim)
        ) from error


def _parameters(module: Any) -> Iterator[tuple[str, Any, str, Any]]:
    for name, owner in list(module.named_modules()):
        for key, parameter in list(owner.named_parameters(recurse=False)):
            yield f"{name}.{key}", owner, key, parameter


def _check_shapes(module: Any, config: Any) -> None:
    """Refuse what would not load: whatever was not known above shows here by its name."""
    from optimizers.export.decoder import empty_module

    heads, head_dim = int(config.num_attention_heads), getattr(config, "head_dim", None)
    remedy = "Use restructure with method: depth for this model."
    if head_dim is not None and config.hidden_size != heads * head_dim:
        remedy = _tied(heads, head_dim)
    try:
        expected = dict(empty_module(config).named_parameters())
    except (ValueError, RuntimeError) as error:
        raise _refusal(config, str(error).strip().splitlines()[0], remedy) from error
    wanted = {name: tuple(value.shape) for name, value in expected.items()}
    found = {name: tuple(value.shape) for name, value in module.named_parameters()}
    for name in [*wanted, *found]:
        if wanted.get(name) != found.get(name):
            reason = f"{name} would be {found.get(name)} and must be {wanted.get(name)}"
            raise _refusal(config, reason, remedy)


def _refusal(config: Any, reason: str, remedy: str) -> StageError:
    return StageError(f"{config.model_type} cannot be so wide: {reason}.", remedy=remedy)


def _tied(heads: int, head_dim: int) -> str:
    return (
        f"Where an architecture ties the hidden size to heads of {head_dim}, change kv_groups and "
        f"hidden together ({heads} heads: {heads * head_dim}), or only ffn."
    )
