"""What trains the runs: each trainer's name, its module of the lab, and the version of its numbers.

The version is part of every run's name, so a run is trained anew after its version was raised, and only then. Raise it
by hand when the same spec and data give other numbers than before, beyond rounding; a run of
``tests/studies/lab/test_golden.py`` fails when it should have been raised. New messages, names, files or speed are no reason.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "EXPONENTIAL",
    "IMAGES",
    "LEAST_SQUARES",
    "NOISE_ONLY",
    "RELU_REGRESSION",
    "SCALES",
    "SEPARABLE",
    "STATIONARY",
    "TEXT",
    "Trainer",
]


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """A module of the lab with a function ``open_run(spec, context)`` (`halflife.studies.lab.trainer`).

    Args:
        name: Part of the names of its runs, so it never changes, wherever the module moves.
        version: Of its numbers, from 1 upwards.
        module: The module, by name: specs are plain and import no torch.

    Examples:
        >>> str(Trainer(name="images", version=2, module="halflife.studies.lab.images.loop"))
        'images-2'
    """

    name: str
    version: int
    module: str

    def __str__(self) -> str:
        return f"{self.name}-{self.version}"


IMAGES = Trainer(name="images", version=1, module="halflife.studies.lab.images.loop")
TEXT = Trainer(name="text", version=1, module="halflife.studies.lab.text.loop")
EXPONENTIAL = Trainer(name="exponential", version=1, module="halflife.studies.lab.synthetic.exponential")
LEAST_SQUARES = Trainer(name="least-squares", version=1, module="halflife.studies.lab.synthetic.least_squares")
NOISE_ONLY = Trainer(name="noise-only", version=1, module="halflife.studies.lab.synthetic.noise_only")
RELU_REGRESSION = Trainer(name="relu-regression", version=1, module="halflife.studies.lab.synthetic.relu_regression")
SCALES = Trainer(name="scales", version=1, module="halflife.studies.lab.synthetic.scales")
SEPARABLE = Trainer(name="separable", version=1, module="halflife.studies.lab.synthetic.separable")
STATIONARY = Trainer(name="stationary", version=1, module="halflife.studies.lab.stationary.process")
