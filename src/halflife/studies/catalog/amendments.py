"""What was changed of decision rules when runs existed already: each change makes a claim harder to reproduce, never easier.

docs/studies.md has the same as a table, with what each change did to the verdicts. Besides, every interval over validation
losses counts 64 blocks since, where it counted 256.
"""

from __future__ import annotations

import dataclasses

from halflife.studies.evidence.claims import Study

__all__ = ["AMENDMENTS", "with_amendments"]

GRID = (
    "the claim is inconclusive if the side without decay has fewer than three learning rates, or takes one at an edge of them"
    " for some seed; before, nobody looked."
)
SLOPE = (
    "the slope is that among runs with the same lam; before, one slope for all runs took up a part of what a lam adds."
)
STAKE = "decay must change the loss by more than the margin, else two things that equal no decay would count as equal."
VERTEX = "a best lam must lie between the outer two of the three lams of its parabola; before, anywhere in the grid."

RANKS = (
    "the rank correlation must lie above {}; before, above 0, which one by chance does in every seed at once, because the"
    " settings are the same in all of them."
)

AMENDMENTS = {
    ("lm-schedules", "a"): GRID,
    ("lm-schedules", "h-moderate"): STAKE,
    ("lm-schedules", "h-large"): STAKE,
    ("lm-generalization", "a-moderate"): SLOPE,
    ("lm-generalization", "a-large"): SLOPE,
    ("lm-generalization", "b"): SLOPE,
    ("lm-generalization", "c"): GRID,
    ("lm-ablations", "a"): STAKE,
    ("lm-ablations", "d-inside"): STAKE,
    ("lm-ablations", "d-outside"): STAKE,
    ("lm-ablations", "e"): f"{GRID} A third learning rate, 3, was added with that rule.",
    (
        "averaging",
        "average-trace",
    ): "the trace of the fine-tuned weights must rank the learning rates; before, nothing had to.",
    (
        "averaging",
        "ensemble",
    ): "averaging must change the test error by more than the margin; before, nothing was at stake.",
    ("bias-variance", "h-early"): STAKE,
    ("lm-dropout", "smaller-lam"): VERTEX,
    ("lm-dropout", "one-pass-gain"): STAKE,
    **{
        ("no-normalization", f"{measure}-{where}"): RANKS.format(0.5)
        for measure in ("hessian", "jacobian")
        for where in ("average", "end")
    },
    **{("transformer-curvature", f"{measure}-ranks"): RANKS.format(0.8) for measure in ("hessian", "jacobian")},
    **{
        ("timescale", key): VERTEX
        for key in ("batch", "matched", "tokens", "tokens-constant", "text", "width", "width-power")
    },
}


def with_amendments(study: Study) -> Study:
    """The study with what was changed of its rules.

    Args:
        study: A study whose claims say nothing of it.

    Returns:
        The same, each claim with its amendment.
    """
    claims = tuple(dataclasses.replace(c, amended=AMENDMENTS.get((study.name, c.key), "")) for c in study.claims)
    return dataclasses.replace(study, claims=claims)
