"""The claims of the study `bad-minima`, each with the rule that decides on it."""

from __future__ import annotations

import functools

from halflife.studies.catalog.images.bad_minima import quantities as rules
from halflife.studies.evidence.claims import Claim

__all__ = ["CLAIMS"]

BAD_RULE = (
    f"Where random and true labels were met (95 % intervals of both training errors below {rules.MET:.0%}): reproduced if the"
    f" 95 % interval of the gap lies above {rules.GAP:g} point; not reproduced if it lies below; else, and where they were not"
    " met, inconclusive."
)
CLOSES_RULE = (
    f"Reproduced if the 90 % interval of the gap lies within +- {rules.GAP:g} point, where the 95 % interval of the gap at the"
    f" small rate without decay lies above {rules.GAP:g} point; not reproduced if it lies wholly outside; else inconclusive."
)
SHRINKS_RULE = (
    f"Reproduced if the gap has shrunk to less than {rules.KEPT:g} of that at the small rate without decay, in either direction"
    f" (95 % intervals of gap - {rules.KEPT:g} * that below 0, and of gap + {rules.KEPT:g} * that above 0); not reproduced if"
    " one lies on the other side; inconclusive else, and where there was no gap (95 % interval not above 0)."
)

CLAIMS = (
    Claim(
        key="bad",
        text="ResNet: from the weights that met random labels, SGD with a small learning rate and without decay meets the true"
        " ones at a global minimum that generalizes worse.",
        rule=BAD_RULE,
        effect_name="gap at the small rate without decay, ResNet",
        unit="points",
        measure=functools.partial(rules.is_bad, model=rules.RESNET),
    ),
    Claim(
        key="escape",
        text="With a large learning rate and decay it leaves: the start does not matter.",
        rule=CLOSES_RULE,
        effect_name="gap at the large rate with decay, ResNet",
        unit="points",
        measure=functools.partial(rules.gap_closes, model=rules.RESNET),
    ),
    Claim(
        key="rate-alone",
        text="The large learning rate does it without decay.",
        rule=SHRINKS_RULE,
        effect_name="gap at the large rate minus half of that at the small one, both without decay",
        unit="points",
        measure=rules.rate_is_enough,
    ),
    Claim(
        key="decay-alone",
        text="The same lam does it at the small learning rate.",
        rule=SHRINKS_RULE,
        effect_name="gap at the small rate with decay minus half of that without",
        unit="points",
        measure=functools.partial(rules.decay_is_enough, matched=False),
    ),
    Claim(
        key="product",
        text="The same lr * lam does it at the small learning rate.",
        rule=SHRINKS_RULE,
        effect_name="gap at the small rate with the product of the large one minus half of that without decay",
        unit="points",
        measure=functools.partial(rules.decay_is_enough, matched=True),
    ),
    Claim(
        key="mlp-bad",
        text="MLP: at the smallest learning rate and without decay the bad start costs, too.",
        rule=BAD_RULE,
        effect_name="gap at the smallest rate without decay, MLP",
        unit="points",
        measure=functools.partial(rules.is_bad, model=rules.MLP),
    ),
    Claim(
        key="mlp-escape",
        text="MLP: with the largest rate and decay it costs nothing.",
        rule=CLOSES_RULE,
        effect_name="gap at the largest rate with the largest lr * lam, MLP",
        unit="points",
        measure=functools.partial(rules.gap_closes, model=rules.MLP),
    ),
    Claim(
        key="mlp-falls",
        text="MLP: the gap falls as lr * lam grows.",
        rule="Over all rates and products with decay: reproduced if the 95 % interval of the slope of the gap against"
        " log10(lr * lam) lies below 0; not reproduced if it lies above; else inconclusive.",
        effect_name="change of the gap for each factor of 10 in lr * lam",
        unit="points",
        measure=rules.falls_with_the_product,
    ),
    Claim(
        key="mlp-product",
        text="MLP: at the same lr * lam the learning rate does not matter to the gap.",
        rule=f"At lr * lam = {rules.MIDDLE:g}: reproduced if the 90 % interval of (gap at lr {rules.GRID_RATES[0]:g} - gap at"
        f" lr {rules.GRID_RATES[-1]:g}) lies within +- {rules.GAP:g} point, where the 95 % interval of the gap at the smallest"
        f" rate without decay lies above {rules.GAP:g} point; not reproduced if it lies wholly outside; else inconclusive.",
        effect_name="gap at the smallest rate minus that at the largest one, same lr * lam",
        unit="points",
        measure=rules.product_is_enough,
    ),
)
