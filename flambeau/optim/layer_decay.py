"""Learning rates that fall with the distance from the model's output (layer-wise decay)."""

from __future__ import annotations

from fnmatch import fnmatchcase

from torch import nn

from flambeau.config.sections import LayerDecaySettings
from flambeau.errors import UsageError


def depth_factors(model: nn.Module, settings: LayerDecaySettings) -> dict[nn.Parameter, float]:
    """The factor of each parameter's learning rate: `factor` to the power of the blocks between it and the output.

    Of L blocks, what the model has after the last of them has the factor 1, block number i from the input
    `factor ** (L + 1 - i)`, and what comes before the first block (embeddings, a stem) `factor ** (L + 1)`, as in BEiT
    (Bao et al., 2022). After and before are the order in which the model names its parameters.

    Raises:
        UsageError: no module matches, or two blocks share a parameter.
    """
    blocks: list[tuple[str, nn.Module]] = []
    for name, module in model.named_modules():
        within = blocks and name.startswith(blocks[-1][0] + ".")  # `layers.*` also fits what is in a layer
        if name and not within and fnmatchcase(name, settings.blocks) and next(module.parameters(), None) is not None:
            blocks.append((name, module))
    if not blocks:
        lists = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList | nn.Sequential)]
        raise UsageError(
            f"optimizer.layer_decay.blocks: '{settings.blocks}' matches no module of the model that has parameters",
            remedy="its lists of modules are: " + ", ".join(f"{name}.*" if name else "*" for name in lists)
            if lists
            else None,
        )
    number: dict[nn.Parameter, int] = {}
    for place, (name, block) in enumerate(blocks, 1):
        for parameter in block.parameters():
            if number.setdefault(parameter, place) != place:
                other = blocks[number[parameter] - 1][0]
                raise UsageError(
                    f"optimizer.layer_decay.blocks: '{settings.blocks}' matches '{other}' and '{name}', which share "
                    "parameters",
                    remedy="take them out of one, or use optimizer.groups",
                )
    factors, passed = {}, 0
    for parameter in model.parameters():
        passed = number.get(parameter, passed)
        # What stands between two blocks belongs to the one before it.
        depth = number.get(parameter, passed if passed < len(blocks) else len(blocks) + 1)
        factors[parameter] = settings.factor ** (len(blocks) + 1 - depth)
    return factors
