"""A new process that resumes runs from checkpoints; see ``tests/optim/test_resume.py``."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch

from tests import FLOOR_BINDS
from tests.oracles.every_rule import BY_NAME, HALF, STEPS, Net, groups_of, train


def resume(folder: Path) -> None:
    """Go on from every checkpoint of a folder, attaching before and after loading; save what came out."""
    for path in sorted(folder.glob("*.saved")):
        case = BY_NAME[path.stem]
        for attach_first in (True, False):
            model = Net(seed=99)
            groups = groups_of(model)
            for group in groups:
                del group["initial_lr"]  # the peak must come from the checkpoint
            optimizer = case.optimizer(groups)
            state = torch.load(path, weights_only=True)
            model.load_state_dict(state["model"])
            if attach_first:
                case.attach(optimizer)
            optimizer.load_state_dict(state["optimizer"])
            if not attach_first:
                case.attach(optimizer)
            train(model, optimizer, range(HALF, STEPS), late=True)
            ending = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(ending, path.with_suffix(".first" if attach_first else ".later"))


if __name__ == "__main__":
    warnings.filterwarnings("ignore", FLOOR_BINDS, UserWarning)
    resume(Path(sys.argv[1]))
