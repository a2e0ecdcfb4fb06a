"""The ensemble of snapshots along a run: the mean of class probabilities, a mean in function space.

Shapes: N images, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["SnapshotEnsemble"]


class SnapshotEnsemble:
    """The mean over snapshots of the class probabilities on fixed images.

    Source: "Why Do We Need Weight Decay in Modern Deep Learning?", tables 2 and 3.

    Args:
        num_images: N.
        num_classes: K.
        device: Where it is kept.
    """

    def __init__(self, num_images: int, num_classes: int, device: torch.device) -> None:
        self.sum_NK = torch.zeros(num_images, num_classes, dtype=torch.float64, device=device)
        self.count = torch.zeros((), dtype=torch.int64, device=device)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds of it."""
        return {"ensemble.sum": self.sum_NK, "ensemble.count": self.count}

    def add(self, logits_NK: Tensor) -> None:
        """Add a snapshot."""
        self.sum_NK += logits_NK.double().softmax(dim=1)
        self.count += 1

    def probabilities(self) -> Tensor:
        """The mean so far, (N, K), float64."""
        return self.sum_NK / self.count

    def loss_and_wrong(self, y_N: Tensor) -> tuple[float, Tensor]:
        """The mean of -log of the right class's probability, and which images are wrong.

        Args:
            y_N: The right classes.

        Returns:
            The loss in nats and booleans (N).
        """
        probabilities_NK = self.probabilities()
        right_N = probabilities_NK.gather(1, y_N[:, None]).squeeze(1)
        # A probability can underflow to 0, whose loss no file can hold.
        return -right_N.clamp_min(torch.finfo(torch.float64).tiny).log().mean().item(), probabilities_NK.argmax(
            dim=1
        ) != y_N

    def total_variation(self, logits_NK: Tensor) -> float:
        """How far another model is: the mean over images of half the l1 distance of the class probabilities, in [0, 1].

        Args:
            logits_NK: The other model's.

        Returns:
            The distance.
        """
        other_NK = logits_NK.double().softmax(dim=1)
        return 0.5 * (self.probabilities() - other_NK).abs().sum(dim=1).mean().item()
