"""Decay beside augmentation: each rule on made-up errors whose answer is known, the figure, and the presets."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest

from halflife.studies.catalog.images.augmentation import AUGMENTATION, KINDS, LAMS
from halflife.studies.evidence.claims import PointsPanel
from halflife.studies.evidence.results import Results
from halflife.studies.specs.images import ImageRun
from tests.studies.catalog.made_up_images import MadeUpImages

Errors = tuple[float, ...]
FLAT = (0.15,) * 4
GOOD = (0.15, 0.14, 0.12, 0.14)
BETTER = (0.15, 0.13, 0.10, 0.13)
BAD = (0.15, 0.17, 0.17, 0.17)


def made_up(plain: Errors, augmented: Errors, jitter: float = 1e-4) -> Results:
    """Errors without and with augmentation for each lam, as fractions."""
    by_kind = dict(zip(KINDS, (plain, augmented), strict=True))

    def error(spec: ImageRun) -> float:
        return by_kind[spec.augmentation][LAMS.index(spec.lam)]

    arms = AUGMENTATION.presets["laptop"].arms
    return cast("Results", MadeUpImages(arms, errors={"test/error": error}, jitter=jitter))


@pytest.mark.parametrize(
    ("key", "plain", "augmented", "jitter", "outcome", "effect"),
    [
        ("shrinks", GOOD, FLAT, 1e-4, "reproduced", 3.0),
        ("shrinks", GOOD, BETTER, 1e-4, "not reproduced", -2.0),
        ("shrinks", FLAT, BAD, 1e-4, "not tested", 2.0),  # decay gains nothing that could shrink
        ("shrinks", GOOD, GOOD, 3e-3, "undecided", 0.0),
        ("helps", FLAT, GOOD, 1e-4, "reproduced", -3.0),
        ("helps", FLAT, BAD, 1e-4, "not reproduced", 2.0),
        ("helps", FLAT, FLAT, 1e-2, "undecided", 0.0),
    ],
)
def test_a_rule_decides_what_it_should(
    key: str, plain: Errors, augmented: Errors, jitter: float, outcome: str, effect: float
) -> None:
    (claim,) = (claim for claim in AUGMENTATION.claims if claim.key == key)
    finding = claim.decide(made_up(plain, augmented, jitter), 8)
    assert finding.outcome == outcome, finding.reason
    assert finding.effect is not None
    assert finding.effect.estimate == pytest.approx(effect, abs=0.06 + 300 * jitter)


def test_the_figure_draws_each_sweep_and_a_point_without_decay() -> None:
    panel = AUGMENTATION.panels[0]
    assert isinstance(panel, PointsPanel)
    rows = panel.rows(made_up(GOOD, FLAT, 1e-5))
    drawn_y = np.array([row.y for row in rows if row.series == "none" and row.style == "line"])
    assert drawn_y - drawn_y[0] == pytest.approx([0, -2, 0], abs=0.06)
    lams = list(LAMS[1:])
    assert [row.x for row in rows if row.series == "none" and row.style == "line"] == lams
    points = [row.x for row in rows if row.series == "none" and row.style == "point"]
    assert points == pytest.approx([lams[0] / 3, *lams])
    assert {row.series for row in rows} == set(KINDS)


def test_presets_keep_to_their_budgets() -> None:
    """An image takes 0.11 ms at width 8, and in proportion to it."""
    for name, minutes in (("laptop", 10), ("night", 90)):
        preset = AUGMENTATION.presets[name]
        total = 0.0
        for arm in preset.arms:
            seeds = preset.num_seeds if arm.size == preset.main_size else preset.num_ladder_seeds
            spec = cast("ImageRun", arm.build(0))
            total += seeds * spec.num_epochs * (spec.num_train or 5_000) * 1.1e-4 * max(arm.size / 8, 0.75)
        assert total / 2 < 60 * minutes
    for preset in AUGMENTATION.presets.values():
        specs = [arm.build(seed) for arm in preset.arms for seed in range(2)]
        assert len({spec.digest() for spec in specs}) == len(specs)
    assert len({arm.size for arm in AUGMENTATION.presets["night"].arms}) == 3
    assert AUGMENTATION.presets["laptop"].num_seeds >= 5
