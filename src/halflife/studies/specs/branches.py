"""The specs of runs that start from another language-model run: branches from a checkpoint, and replays."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from halflife.errors import UserError
from halflife.studies.specs.base import RunSpec, check_choices, check_counts, check_numbers
from halflife.studies.specs.text import TextRun
from halflife.studies.specs.trainers import TEXT, Trainer

__all__ = ["TextBranch", "TextReplay"]

BRANCHES = ("tiny-lr", "cooldown")
MATCHES = ("global", "per-tensor", "global-squared", "none")


@dataclass(frozen=True, kw_only=True)
class TextBranch(RunSpec):
    """A run that goes on from a checkpoint of another, with the optimizer's state and the data that come next.

    A *tiny-lr branch* holds the learning rate at ``lr_factor`` times the parent's ``lr``, without decay. A *cooldown
    branch* takes it from the parent's down to 0 in a straight line, with the parent's decay. What a run
    gains by either is the loss due to its noise.

    Source: "Why Do We Need Weight Decay in Modern Deep Learning?", section 3 (figure 6) for the first.

    Args:
        of: The parent; `TextRun.keep_at` must hold ``at``.
        at: The parent's step at which the branch starts.
        branch: ``"tiny-lr"`` or ``"cooldown"``.
        lr_factor: Of a tiny-lr branch: its learning rate over the parent's ``lr``. The paper: 1e-5 after 6e-4.
        num_steps: Optimizer steps of the branch.
    """

    kind: ClassVar[str] = "text-branch"
    trainer: ClassVar[Trainer] = TEXT
    data_module: ClassVar[str] = "halflife.studies.lab.text.corpora"

    of: TextRun
    at: int
    branch: str
    lr_factor: float = 1 / 60
    num_steps: int

    def __post_init__(self) -> None:
        # A branch has the seed of its parent.
        if self.seed != self.of.seed:
            object.__setattr__(self, "seed", self.of.seed)
        check_choices(self, {"branch": BRANCHES})
        if self.at not in self.of.keep_at:
            raise UserError(f"a branch starts at step {self.at}, which the parent does not keep: add it to keep_at")
        check_numbers(self, "lr_factor", above=0, at_most=1)
        check_counts(self, "num_steps")
        check_counts(self, "max_steps", or_none=True)

    @property
    def parent(self) -> RunSpec | None:
        """The run that it branches from."""
        return self.of

    @property
    def reads_folder(self) -> bool:
        """Whether its data lie in the folder that ``--data`` names."""
        return self.of.reads_folder

    @property
    def parent_file(self) -> str:
        """The checkpoint."""
        return f"step-{min(self.at, self.of.last_step)}"

    @property
    def last_step(self) -> int:
        """The number of steps that are really done."""
        return self.num_steps if self.max_steps is None else min(self.max_steps, self.num_steps)

    def with_seed(self, seed: int) -> Self:
        """The same start from the same parent, both with another seed."""
        return replace(self, of=self.of.with_seed(seed), seed=seed)

    def cut(self, max_steps: int | None) -> Self:
        """The same branch of the same parent, both with at most so many steps."""
        return replace(self, of=self.of.cut(max_steps), max_steps=max_steps)


@dataclass(frozen=True, kw_only=True)
class TextReplay(RunSpec):
    """A run without decay whose learning rate is set at every step so that its effective rate is that of another run.

    With w the parent's weights, w' the replay's, and r_t the fraction that the parent's decay removes, ``"global"`` uses

        lr'_t = lr_t * ||w'_t|| / ||w_t|| / (1 - r_t)

    with the norms of the whole model, ``"per-tensor"`` the same for every decayed tensor by itself (the others keep
    lr_t), ``"global-squared"`` the squared ratio, and ``"none"`` lr_t itself, for comparison.

    Source: "Why Do We Need Weight Decay in Modern Deep Learning?", figure 7; per tensor is not in the paper.

    Args:
        of: The parent; it must keep its norms (`TextRun.trace_norms`).
        match: How the rate is matched.
    """

    kind: ClassVar[str] = "text-replay"
    trainer: ClassVar[Trainer] = TEXT
    data_module: ClassVar[str] = "halflife.studies.lab.text.corpora"

    of: TextRun
    match: str

    def __post_init__(self) -> None:
        if self.seed != self.of.seed:
            object.__setattr__(self, "seed", self.of.seed)
        check_choices(self, {"match": MATCHES})
        if not self.of.trace_norms:
            raise UserError("a replay needs the norms of its parent: give the parent trace_norms=True")

    @property
    def parent(self) -> RunSpec | None:
        """The run that it replays."""
        return self.of

    @property
    def reads_folder(self) -> bool:
        """Whether its data lie in the folder that ``--data`` names."""
        return self.of.reads_folder

    @property
    def parent_file(self) -> str:
        """The norms."""
        return "norms.safetensors"

    @property
    def last_step(self) -> int:
        """The number of steps that are really done."""
        return self.of.last_step

    def with_seed(self, seed: int) -> Self:
        """The same start from the same parent, both with another seed."""
        return replace(self, of=self.of.with_seed(seed), seed=seed)

    def cut(self, max_steps: int | None) -> Self:
        """The same replay of the same parent, both with at most so many steps."""
        return replace(self, of=self.of.cut(max_steps), max_steps=max_steps)
