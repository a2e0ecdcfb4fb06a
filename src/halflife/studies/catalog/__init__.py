"""The studies: claims of the literature as experiments with decision rules, by topic.

A study is one file, or one folder with the files ``study`` (what runs, what is claimed), ``quantities`` (what is measured, and
the rule of each claim), ``figures`` and ``theory`` (what a formula says).
"""

from __future__ import annotations

from collections.abc import Mapping

from halflife.errors import UserError, did_you_mean
from halflife.studies.catalog.amendments import with_amendments
from halflife.studies.catalog.curvature.alignment.study import CURVATURE_ALIGNMENT
from halflife.studies.catalog.curvature.averaging.study import AVERAGING
from halflife.studies.catalog.curvature.noise_loss import NOISE_LOSS
from halflife.studies.catalog.curvature.sphere.study import SPHERE
from halflife.studies.catalog.curvature.transformer.study import TRANSFORMER_CURVATURE
from halflife.studies.catalog.images.augmentation import AUGMENTATION
from halflife.studies.catalog.images.bad_minima import BAD_MINIMA
from halflife.studies.catalog.images.dataset_size import DATASET_SIZE
from halflife.studies.catalog.images.eta_lambda.study import ETA_LAMBDA, ETA_LAMBDA_VGG
from halflife.studies.catalog.images.no_normalization import NO_NORMALIZATION
from halflife.studies.catalog.images.stabilization import STABILIZATION, STABILIZATION_VGG
from halflife.studies.catalog.language.ablations import LM_ABLATIONS
from halflife.studies.catalog.language.bias_variance.study import BIAS_VARIANCE
from halflife.studies.catalog.language.dropout import LM_DROPOUT
from halflife.studies.catalog.language.effective_lr import LM_EFFECTIVE_LR
from halflife.studies.catalog.language.generalization import LM_GENERALIZATION
from halflife.studies.catalog.language.schedules import LM_SCHEDULES
from halflife.studies.catalog.language.timescale.study import TIMESCALE
from halflife.studies.catalog.precision.divergence import BF16_DIVERGENCE
from halflife.studies.catalog.precision.lost_updates import LOST_UPDATES
from halflife.studies.catalog.precision.threshold import PRECISION_THRESHOLD
from halflife.studies.catalog.scheduling.equilibrium import EQUILIBRIUM
from halflife.studies.catalog.scheduling.stable_decay import STABLE_DECAY
from halflife.studies.catalog.theory.disparate_scales.study import DISPARATE_SCALES
from halflife.studies.catalog.theory.exponential_lr import EXPONENTIAL_LR
from halflife.studies.catalog.theory.stationary_mean.study import STATIONARY_MEAN
from halflife.studies.catalog.theory.textbook.study import TEXTBOOK
from halflife.studies.evidence.claims import Preset, Study

__all__ = ["STUDIES", "get_preset", "get_study"]

STUDIES: dict[str, Study] = {
    study.name: with_amendments(study)
    for study in (
        STABILIZATION,
        STABILIZATION_VGG,
        LM_SCHEDULES,
        LM_GENERALIZATION,
        LM_EFFECTIVE_LR,
        LM_ABLATIONS,
        LM_DROPOUT,
        BF16_DIVERGENCE,
        PRECISION_THRESHOLD,
        LOST_UPDATES,
        AUGMENTATION,
        BIAS_VARIANCE,
        TIMESCALE,
        TEXTBOOK,
        BAD_MINIMA,
        AVERAGING,
        CURVATURE_ALIGNMENT,
        EXPONENTIAL_LR,
        SPHERE,
        TRANSFORMER_CURVATURE,
        NO_NORMALIZATION,
        STATIONARY_MEAN,
        NOISE_LOSS,
        ETA_LAMBDA,
        ETA_LAMBDA_VGG,
        DATASET_SIZE,
        DISPARATE_SCALES,
        STABLE_DECAY,
        EQUILIBRIUM,
    )
}


def get_study(name: str, studies: Mapping[str, Study] | None = None) -> Study:
    """The study of this name.

    Args:
        name: As on the command line.
        studies: Where to look (``None``: among ours).

    Returns:
        The study.

    Raises:
        UserError: There is none.
    """
    studies = STUDIES if studies is None else studies
    if name not in studies:
        raise UserError(
            f"there is no study {name!r}, expected one of {', '.join(studies)}: see `halflife study list`"
            f"{did_you_mean(name, studies)}"
        )
    return studies[name]


def get_preset(study: Study, name: str) -> Preset:
    """A study's preset.

    Args:
        study: The study.
        name: The preset's name.

    Returns:
        The preset.

    Raises:
        UserError: The study has none of this name.
    """
    if name not in study.presets:
        raise UserError(
            f"{study.name} has no preset {name!r}, expected one of {', '.join(study.presets)}: name one of these"
        )
    return study.presets[name]
