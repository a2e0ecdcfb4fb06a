"""Studies: claims of the literature as experiments with a decision rule, one file a paper or claim."""

from __future__ import annotations

import difflib

from halflife.errors import UserError
from halflife.studies.amendments import with_amendments
from halflife.studies.augmentation import AUGMENTATION
from halflife.studies.averaging import AVERAGING
from halflife.studies.bad_minima import BAD_MINIMA
from halflife.studies.base import Preset, Study
from halflife.studies.bias_variance import BIAS_VARIANCE
from halflife.studies.curvature_alignment import CURVATURE_ALIGNMENT
from halflife.studies.dataset_size import DATASET_SIZE
from halflife.studies.eta_lambda import ETA_LAMBDA, ETA_LAMBDA_VGG
from halflife.studies.exponential_lr import EXPONENTIAL_LR
from halflife.studies.lm_ablations import LM_ABLATIONS
from halflife.studies.lm_dropout import LM_DROPOUT
from halflife.studies.lm_effective_lr import LM_EFFECTIVE_LR
from halflife.studies.lm_generalization import LM_GENERALIZATION
from halflife.studies.lm_schedules import LM_SCHEDULES
from halflife.studies.no_normalization import NO_NORMALIZATION
from halflife.studies.noise_loss import NOISE_LOSS
from halflife.studies.sphere import SPHERE
from halflife.studies.stabilization import STABILIZATION, STABILIZATION_VGG
from halflife.studies.stationary_mean import STATIONARY_MEAN
from halflife.studies.textbook import TEXTBOOK
from halflife.studies.timescale import TIMESCALE
from halflife.studies.transformer_curvature import TRANSFORMER_CURVATURE

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
    )
}


def get_study(name: str) -> Study:
    """The study of this name.

    Args:
        name: As on the command line.

    Returns:
        The study.

    Raises:
        UserError: There is none.
    """
    if name not in STUDIES:
        near = difflib.get_close_matches(name, STUDIES, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(
            f"there is no study {name!r}, expected one of {', '.join(STUDIES)}: see `halflife study list`{hint}"
        )
    return STUDIES[name]


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
