"""The specs of image classifiers' runs: model, optimizer, decay, schedule, averages, probes; and runs that go on from one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Self

from halflife.errors import UserError
from halflife.studies.specs.base import RunSpec, check_choices, check_counts, check_numbers, check_removed
from halflife.studies.specs.optimizers import SETTINGS, check_decay, check_lr_schedule, check_optimizer
from halflife.studies.specs.trainers import IMAGES, Trainer

if TYPE_CHECKING:
    from halflife.studies.specs.exponential import ExponentialRun

__all__ = ["ImageBranch", "ImageRun", "check_architecture", "fine_tune_branch"]

MODELS = (
    "resnet",
    "vgg",
    "scale-invariant",
    "resnet-plain",
    "mlp",
    "vgg-bn",
    "densenet",
    "densenet-basic",
    "googlenet",
)
LEAST_WIDTH = {"googlenet": 4}  # its thinnest branch has width / 4 channels
PROBES = (
    "hessian-trace",
    "gauss-newton-trace",
    "top-eigenvalue",
    "jacobian-norm",
    "noise-scale",
    "gradient-norm",
    "gradient-noise",
    "alignment",
    "decayed-gradient",
)
SHIPPED = ("fashion-mnist-5k", "fashion-mnist-views")
DATASETS = (*SHIPPED, "fashion-mnist", "cifar10")
PRECISIONS = ("float32", "bfloat16", "float16")
AUGMENTATIONS = ("none", "flip-crop")
DROP = ("lr_after_drop", "drop_at")


@dataclass(frozen=True, kw_only=True)
class ImageRun(RunSpec):
    """An image classifier, by default trained by plain SGD (momentum 0), learning rate dropped once.

    Source: of the defaults "Why Do We Need Weight Decay in Modern Deep Learning?", appendix B; of the optimizers and of the
    models after ``"mlp"`` the table of "Understanding and Scheduling Weight Decay" (arXiv 2011.11152).

    Args:
        data: A name of `halflife.studies.lab.images.data`.
        num_train: Training images used, from the start of the set (``None``: all).
        num_test: Test images used (``None``: all).
        downsample: Images are averaged over squares of this side first.
        model: ``"resnet"`` (pre-activation, BatchNorm), ``"vgg"`` (no normalization), ``"scale-invariant"`` (a ResNet
            whose every trained weight is followed by normalization, the rest fixed), ``"resnet-plain"`` (a ResNet
            without normalization), ``"mlp"`` (ReLU), ``"vgg-bn"`` (VGG with BatchNorm), ``"densenet"`` (with
            bottlenecks), ``"densenet-basic"`` (without) or ``"googlenet"`` (with BatchNorm).
        width: Channels of the first stage; units of a hidden layer of the MLP; channels that each layer of a DenseNet
            adds. GoogLeNet has the paper's channels times width / 64.
        blocks: Blocks (ResNet, GoogLeNet), convolutions (VGG) or layers (DenseNet) per stage; the MLP has one hidden
            layer for each entry.
        lr: Learning rate before the drop; with ``lr_schedule`` the one where the schedule is 1.
        lr_after_drop: Learning rate after the drop.
        drop_at: Fraction of the epochs after which the learning rate drops.
        lr_schedule: Multiplier of ``lr``, as `halflife.schedules` prints it, in place of the drop (empty: the drop).
        lr_schedule_unit: What the schedule is a function of: the ``"steps"`` done, the whole ``"epochs"`` done, or the whole
            ``"percent"`` of all steps that are done, so that ``"piecewise((1.0, 0.1), (85,))"`` drops after 85 % of any run.
        optimizer: ``"sgd"``, ``"adam"``, ``"adamw"`` (the same: none brings a decay of its own), ``"amsgrad"``,
            ``"radam"``, ``"adabound"``, ``"padam"``, ``"yogi"`` or ``"adai"``.
        momentum: Of SGD (``None``, here and below: the optimizer's own value in `halflife.studies.specs.optimizers`).
        beta1: Of all others; beta_0 of Adai.
        beta2: Of all others.
        eps: Of all others.
        final_lr: Of AdaBound, at ``lr``; it follows the schedule.
        partial: Of Padam: the exponent of the second moment, at most 1/2, which is Adam.
        lam: Decoupled weight decay: each step removes the fraction r = lr * lam of every weight.
        decay: The rule or penalty in place of ``lam``, as `halflife.rules` prints it, such as ``"L2(lam=0.01)"``.
        decay_on: Which parameters decay: a policy of `halflife.param_groups`.
        num_epochs: Passes over the training images.
        batch_size: Images per step; a last smaller batch is left out.
        ema: Decays per step of the moving averages of the weights; each is evaluated beside the weights.
        eval_every: Evaluate on both sets every so many epochs, and always at the drop and at the end.
        precision: ``"float32"``, or autocast to ``"bfloat16"`` or ``"float16"`` (with gradient scaling).
        augmentation: Of training batches: ``"none"``, as in the paper, or ``"flip-crop"``: each image is flipped
            with probability 1/2 and moved by up to an eighth of its side, black coming in, anew in each epoch.
        label_smoothing: Of the training loss; readings are always without.
        label_noise: Share of the training labels that are replaced by one drawn evenly from all classes, the right one
            included. Readings of the training set are with these labels.
        fresh_label_noise: Draw which, and what, anew in each epoch, for training alone; readings are then with the
            right labels.
        sphere: After each step the trained weights are taken together and projected on the sphere of this radius
            (0: they are not). Without decay alone.
        ensemble_every: Average the class probabilities on the test set over the weights after every so many epochs,
            up to the drop (0: do not): the ensemble of snapshots, a mean in function space.
        keep_at: Epochs after which the weights and their averages are kept for runs that start from them.
        probes: What to measure of the weights and of each average, besides losses (`halflife.probes`): see `PROBES`.
        probe_every: Probe after every so many epochs (0: only at the drop and at the end, where it is always done).
        probe_examples: Probe on so many training images, from the start of the set, with their right labels unless
            ``label_noise`` replaced them for good; ``"decayed-gradient"`` takes all.
        probe_vectors: Matrix-vector products of a trace estimate.
        trace: Read in each epoch, of every step, what r was removed and the norms of the decayed weights, their gradient
            and their change; and of every decayed tensor the means over the epoch of its norm, its rotation, and its
            gradient over its norm (`halflife.studies.lab.images.trace`).
    """

    kind: ClassVar[str] = "images"
    trainer: ClassVar[Trainer] = IMAGES
    data_module: ClassVar[str] = "halflife.studies.lab.images.sources"
    added_later: ClassVar[frozenset[str]] = frozenset(
        {
            "augmentation",
            "label_smoothing",
            "label_noise",
            "fresh_label_noise",
            "sphere",
            "ensemble_every",
            "keep_at",
            "probes",
            "probe_every",
            "probe_examples",
            "probe_vectors",
            "lr_schedule",
            "lr_schedule_unit",
            "optimizer",
            *SETTINGS,
            "decay",
            "decay_on",
            "trace",
        }
    )

    data: str = "fashion-mnist-5k"
    num_train: int | None = None
    num_test: int | None = None
    downsample: int = 2
    model: str = "resnet"
    width: int = 8
    blocks: tuple[int, ...] = (1, 1, 1)
    lr: float
    lr_after_drop: float = 1e-3
    drop_at: float = 0.5
    lr_schedule: str = ""
    lr_schedule_unit: str = "steps"
    optimizer: str = "sgd"
    momentum: float | None = None
    beta1: float | None = None
    beta2: float | None = None
    eps: float | None = None
    final_lr: float | None = None
    partial: float | None = None
    lam: float = 0.0
    decay: str = ""
    decay_on: str = "everything"
    num_epochs: int
    batch_size: int = 128
    ema: tuple[float, ...] = (0.999,)
    eval_every: int = 10
    precision: str = "float32"
    augmentation: str = "none"
    label_smoothing: float = 0.0
    label_noise: float = 0.0
    fresh_label_noise: bool = False
    sphere: float = 0.0
    ensemble_every: int = 0
    keep_at: tuple[int, ...] = ()
    probes: tuple[str, ...] = ()
    probe_every: int = 0
    probe_examples: int = 500
    probe_vectors: int = 24
    trace: bool = False

    def __post_init__(self) -> None:
        check_numbers(self, "lr", "lr_after_drop", above=0)
        check_numbers(self, "drop_at", above=0, at_most=1)
        check_numbers(self, "lam", "sphere")
        check_numbers(self, "label_noise", "ema", at_most=1)
        check_numbers(self, "label_smoothing", at_most=0.9)
        check_counts(self, "num_train", "num_test", "max_steps", or_none=True)
        check_counts(self, "downsample", "width", "num_epochs", "batch_size", "eval_every", "keep_at")
        check_counts(self, "probe_examples", "probe_vectors")
        check_counts(self, "ensemble_every", "probe_every", least=0)
        check_choices(self, {"model": MODELS, "data": DATASETS, "precision": PRECISIONS, "augmentation": AUGMENTATIONS})
        check_optimizer(self)
        check_decay(self)
        check_lr_schedule(self, {name: type(self).__dataclass_fields__[name].default for name in DROP})
        check_architecture(self)
        if not isinstance(self.trace, bool):
            raise UserError(f"trace is {self.trace!r}, expected True or False: change trace")
        if self.sphere > 0 and (self.lam > 0 or self.decay):
            said = f"decay is {self.decay!r}" if self.decay else f"lam is {self.lam:g}"
            raise UserError(
                f"sphere is {self.sphere:g} and {said}: on a sphere there is nothing to decay, set one to 0"
            )
        for epoch in self.keep_at:
            if epoch > self.num_epochs:
                raise UserError(f"keep_at has {epoch}, expected at most num_epochs {self.num_epochs}: change keep_at")
        for probe in self.probes:
            if probe not in PROBES:
                raise UserError(f"probes has {probe!r}, expected some of {', '.join(PROBES)}: change probes")
        traces = {"hessian-trace", "gauss-newton-trace"} & set(self.probes)
        if traces and (self.probe_vectors < 6 or self.probe_vectors % 2):
            raise UserError(
                f"probe_vectors is {self.probe_vectors}, expected an even integer >= 6, which the trace estimator needs: change"
                " probe_vectors"
            )
        check_removed(max(self.lr, self.lr_after_drop), self.lam)

    @property
    def reads_folder(self) -> bool:
        """Whether its data lie in the folder that ``--data`` names."""
        return self.data not in SHIPPED

    @property
    def drop_epoch(self) -> int:
        """The last epoch at the first learning rate; with a schedule, the last of all."""
        return self.num_epochs if self.lr_schedule else round(self.num_epochs * self.drop_at)


@dataclass(frozen=True, kw_only=True)
class ImageBranch(RunSpec):
    """A run that starts from the weights that another one kept.

    Only weights are taken over: the optimizer's state, averages, ensembles and the order of the data start anew, epochs
    count from 0.

    Args:
        of: The parent; `ImageRun.keep_at` must hold ``at``.
        at: The parent's epoch after which it starts.
        then: The run itself. Its seed and its model are the parent's.
        weights: What to start from: ``"last"``, or an average of the parent as ``"ema-0.999"``, with the BatchNorm
            statistics that were computed for it.
    """

    kind: ClassVar[str] = "image-branch"
    trainer: ClassVar[Trainer] = IMAGES
    data_module: ClassVar[str] = "halflife.studies.lab.images.sources"

    of: ImageRun
    at: int
    then: ImageRun
    weights: str = "last"

    def __post_init__(self) -> None:
        # A branch has the seed of its parent.
        if self.seed != self.of.seed:
            object.__setattr__(self, "seed", self.of.seed)
        if self.then.seed != self.of.seed:
            object.__setattr__(self, "then", replace(self.then, seed=self.of.seed))
        if self.at not in self.of.keep_at:
            raise UserError(f"a branch starts at epoch {self.at}, which the parent does not keep: add it to keep_at")
        for name in ("model", "width", "blocks", "downsample", "data"):
            if getattr(self.then, name) != getattr(self.of, name):
                raise UserError(
                    f"{name} of a branch is {getattr(self.then, name)!r} and its parent's is {getattr(self.of, name)!r}:"
                    " a branch goes on with the same model on the same images"
                )
        known = ("last", *(f"ema-{decay:g}" for decay in self.of.ema))
        if self.weights not in known:
            raise UserError(f"weights is {self.weights!r}, expected one of {', '.join(known)}: change weights")

    @property
    def parent(self) -> RunSpec | None:
        """The run that it starts from."""
        return self.of

    @property
    def parent_file(self) -> str:
        """The weights."""
        return f"epoch-{self.at}.safetensors"

    @property
    def reads_folder(self) -> bool:
        """Whether its data lie in the folder that ``--data`` names."""
        return self.of.reads_folder

    def with_seed(self, seed: int) -> Self:
        """The same start from the same parent, both with another seed."""
        return replace(self, of=self.of.with_seed(seed), seed=seed)

    def cut(self, max_steps: int | None) -> Self:
        """The same branch of the same parent, both with at most so many steps."""
        return replace(self, of=self.of.cut(max_steps), then=self.then.cut(max_steps), max_steps=max_steps)


def check_architecture(spec: ImageRun | ExponentialRun) -> None:
    """Refuse a model without stages, or thinner than it can be.

    Args:
        spec: A run with ``model``, ``width`` and ``blocks``.

    Raises:
        UserError: There is no such model.
    """
    counts = spec.blocks if isinstance(spec.blocks, tuple) else ()
    if not counts or not all(isinstance(count, int) and count >= 1 for count in counts):
        raise UserError(f"blocks is {spec.blocks!r}, expected at least one stage of >= 1 blocks: change blocks")
    least = LEAST_WIDTH.get(spec.model, 1)
    if spec.width < least:
        raise UserError(f"width is {spec.width}, expected at least {least} for {spec.model}: raise width")


def fine_tune_branch(of: ImageRun, at: int, *, lr: float, num_epochs: int) -> ImageBranch:
    """The tiny-learning-rate branch: lr small, lam = 0, from the parent's weights after epoch ``at``.

    It shows the loss without the noise of a large learning rate. It is one of two ways to estimate the mean of the process;
    `ImageRun.ema` is the other.

    Source: "Why Do We Need Weight Decay in Modern Deep Learning?", section 2.2 and figure 5.

    Args:
        of: The parent.
        at: The epoch, one of its ``keep_at``.
        lr: The small learning rate; the paper: 1e-3.
        num_epochs: How long; the paper: 100.

    Returns:
        The branch. It evaluates and probes at its end only.

    Examples:
        >>> run = ImageRun(lr=0.1, lam=0.01, num_epochs=20, keep_at=(10,))
        >>> fine_tune_branch(run, 10, lr=1e-3, num_epochs=5).then.lam
        0.0
    """
    then = replace(
        of,
        lr=lr,
        lr_after_drop=lr,
        drop_at=1.0,
        lr_schedule="",
        lr_schedule_unit="steps",
        lam=0.0,
        decay="",
        num_epochs=num_epochs,
        eval_every=num_epochs,
        ema=(),
        ensemble_every=0,
        keep_at=(),
        probe_every=0,
    )
    return ImageBranch(of=of, at=at, then=then, max_steps=of.max_steps)
