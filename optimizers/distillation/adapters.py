"""Low-rank adapters beside a model's linear layers: put on, and merged into the weights again.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021
(https://arxiv.org/abs/2106.09685), by peft. Where a weight has zeros to keep, its layer computes
with what the weight will be after the merge, zeros included: what is trained is what is kept. That
is MaskLoRA of Zimmer et al., "PERP: Rethinking the Prune-Retrain Paradigm in the Era of LLMs", 2023
(https://arxiv.org/abs/2312.15230). Knows nothing of how adapters are trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from optimizers.distillation.masks import apply_masks
from optimizers.errors import StageError
from optimizers.linear_layers import block_layers, is_transposed

_SCALE = 2  # of what an adapter adds, whatever its rank
_ADAPTER = "default"  # peft's name for the only one


def attach(module: Any, masks: Mapping[str, Any], *, rank: int) -> Any:
    """Freeze a module and put adapters on all linear layers of its decoder, head excepted.

    Raises:
        StageError: The architecture keeps weights outside linear layers.
    """
    from peft import LoraConfig, get_peft_model

    try:
        layers = block_layers(module)
    except StageError as error:
        raise StageError(
            str(error.args[0]), path="weights", remedy="Use weights: full for this model."
        ) from error
    config = LoraConfig(
        r=rank,
        lora_alpha=_SCALE * rank,
        target_modules=[name for name, _ in layers],
        fan_in_fan_out=is_transposed(layers[0][1]),
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(module, config)
    for name, mask in masks.items():
        layer = model.get_base_model().get_submodule(name.removesuffix(".weight"))
        layer.register_buffer("zeros", mask, persistent=False)
        layer.forward = partial(_masked, layer)
    return model


def merge(model: Any, masks: Mapping[str, Any]) -> Any:
    """Add what the adapters learned to the weights, and give the module without any of them."""
    module = model.merge_and_unload()
    apply_masks(module, masks)
    return module


def _masked(layer: Any, inputs: Any) -> Any:
    """What a layer gives once its adapter is merged and its zeros are zero again."""
    from torch.nn.functional import linear

    base = layer.get_base_layer()
    weight = base.weight + layer.get_delta_weight(_ADAPTER).masked_fill(layer.zeros, 0)
    return linear(inputs, weight.T if is_transposed(base) else weight, base.bias)
