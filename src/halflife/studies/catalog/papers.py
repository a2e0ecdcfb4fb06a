"""The papers as guides through their claims, in the order in which the papers and their slides make them. All of it is data.

What a step says of a paper is what the paper says, right or wrong; numbers and verdicts come from the studies.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PAPERS", "Paper", "PaperStep"]


@dataclass(frozen=True)
class PaperStep:
    """One step of a guide: what the paper says there, and the study that tests it.

    Args:
        heading: A headline.
        words: What the paper says at this point, in a few sentences.
        study: Name of the study.
        claims: Keys of the study's claims that belong here (empty: all).
        panels: Slugs of the study's figures that belong here (empty: those that the docs show, or its first ones).
        published: Whether the published numbers that the study shows beside its own are to be seen here.
    """

    heading: str
    words: str
    study: str
    claims: tuple[str, ...] = ()
    panels: tuple[str, ...] = ()
    published: bool = True


@dataclass(frozen=True, kw_only=True)
class Paper:
    """A paper and the guide through it.

    Args:
        key: Names the paper's page.
        title: Its title.
        authors: Who wrote it.
        reference: Where it appeared, with its arXiv number.
        steps: The steps of the guide.
        untested: What the paper claims and no study here tests, in one sentence or more (empty: nothing that we know of).
    """

    key: str
    title: str
    authors: str
    reference: str
    steps: tuple[PaperStep, ...]
    untested: str = ""


_WHY_IMAGES = (
    PaperStep(
        "Before the claims: what needs decay, and what does not",
        "The background. A net may fit its data smoothly without any decay, because gradient descent with a large learning"
        " rate prefers some solutions to others. On separable data gradient descent without decay turns towards the"
        " direction of the largest margin, as slowly as 1 / log t; a softer margin needs explicit regularization.",
        "textbook",
        panels=("functions", "boundaries", "angle"),
    ),
    PaperStep(
        "Before the claims: minima that generalize badly",
        "The background, continued. A net that can fit anything has global minima of its training loss that generalize"
        " badly; training on random labels first leads to one. The question is whether SGD leaves it, and what learning"
        " rate and decay have to do with that.",
        "bad-minima",
    ),
    PaperStep(
        "From over-training to a single pass",
        "Figure 1, on CIFAR-5m: the number of training samples is held, and the distinct images among them grow from"
        " 10,000, each seen 500 times, to 5 million, each seen once. Decay does not keep the net from fitting the small"
        " sets, whose training error is 0 with and without, and still lowers the test error. The gain shrinks as images"
        " are repeated less, and in a single pass decay only makes the optimization faster.",
        "dataset-size",
        panels=("test-error", "train-error"),
    ),
    PaperStep(
        "Loss stabilization",
        "Figures 2 and 11: ResNets trained by plain SGD without augmentation, with a large learning rate in the first half"
        " of the run and a tiny one in the second. With a large rate and decay the training loss stays on a plateau until"
        " the rate drops, and the test error ends lowest. Runs with the same lam end with the same norm and the same"
        " training loss, whatever their rate, and with very different test errors: so neither the norm nor the regularized"
        " objective is what matters.",
        "stabilization",
        panels=("test-error", "train-running-loss", "ema-0.999-test-error", "weight-norm"),
    ),
    PaperStep(
        "The same without normalization layers",
        "Figure 12 repeats it with a VGG without BatchNorm. No layer of it is scale-invariant, so that an effective"
        " learning rate cannot be the whole explanation. At its small learning rate decay harms the VGG, where it helps"
        " the ResNets.",
        "stabilization-vgg",
    ),
    PaperStep(
        "Beside augmentation",
        "The paper trains its nets without augmentation and does not say what decay does beside it. The claims of this"
        " step are ours.",
        "augmentation",
    ),
    PaperStep(
        "One product",
        "Figures 3, 4 and 10: over a grid of learning rates and lams the test error of the averaged weights is lowest"
        " along a curve of constant lr * lam. Against this product the training loss and the scale of the gradient noise"
        " rise, the norm of the Jacobian falls, and the test error has the shape of a U. Its minimum is at 5e-4 to 7e-4 in"
        " the figure for Tiny-ImageNet, read by eye; the text says 0.005, where the same figure has its largest error.",
        "eta-lambda",
        panels=("grid-error", "grid-jacobian", "product-error", "product-loss", "product-noise", "product-jacobian"),
    ),
    PaperStep(
        "One product, without normalization layers",
        "The nets of figures 3, 4 and 10 have BatchNorm. Whether the product alone matters in a VGG without it, where"
        " decay changes the function itself, is an open question; the claims are those of the step before.",
        "eta-lambda-vgg",
        panels=("grid-error", "product-error", "product-loss", "product-jacobian"),
    ),
    PaperStep(
        "The conjecture",
        "SGD with a large learning rate and decay is conjectured to have a stationary distribution in function space. Its"
        " mean is that of a stationary point of the loss, plus decay, plus a penalty: lr sigma^2 times the squared norm of"
        " the Jacobian, or times the trace of the Hessian in the first version of the paper. So learning rate and lam act"
        " through the strength of an implicit regularizer.",
        "stationary-mean",
    ),
    PaperStep(
        "Its first approximation: noise with the shape of the curvature",
        "Figures 13 and 16 to 18: the covariance of the gradient noise is replaced by a multiple of the Gauss-Newton"
        ' matrix, as if the derivative of the loss were equally large for all examples ("decoupling"). Of a'
        " scale-invariant ResNet after one epoch the paper shows cosines between noise covariance, Gauss-Newton matrix and"
        " Hessian; the spectra of the covariance with and without the approximation overlap.",
        "curvature-alignment",
    ),
    PaperStep(
        "Its second approximation: noise as large as the loss",
        "Proposition 2: the energy of the gradient noise is at most a multiple of the training loss; that it is at least a"
        " multiple of it is argued, not proved. So a loss that is kept on a plateau keeps the noise up, and with it the"
        " implicit penalty. By our own calculation the energy falls like the square of a cross-entropy that goes to 0.",
        "noise-loss",
    ),
    PaperStep(
        "The mean of the process",
        "Figures 5 and 14, tables 2 and 3: the mean is taken in two ways, by a moving average of the weights, and by"
        " fine-tuning with a tiny learning rate and without decay. Both lower the test error anywhere on the plateau, the"
        " average slightly more. A larger learning rate gives the average a smaller Jacobian norm and the fine-tuned net a"
        " larger one, which the paper admits to contradict the conjecture. The tables compare the average of the weights"
        " with the mean of the outputs of snapshots.",
        "averaging",
        panels=(
            "train-loss",
            "test-error-average",
            "test-error-fine-tuned",
            "jacobian-norm-average",
            "jacobian-norm-fine-tuned",
            "hessian-trace-average",
            "hessian-trace-fine-tuned",
            "ensemble",
        ),
    ),
    PaperStep(
        "On the sphere",
        "Figure 15: a scale-invariant ResNet whose weights are put back on the sphere, so that there is no norm left for"
        " decay to hold, and the conjecture is about the learning rate alone. After 100 epochs at a large rate and 100 at"
        " a tiny one the test error against the large rate has the shape of a U.",
        "sphere",
    ),
    PaperStep(
        "Decay as a growing learning rate",
        "The known explanation for nets with normalization (Li and Arora 2020, arXiv 1910.07454): if scaling the weights"
        " does not change what the net computes, then SGD at a constant learning rate with decay visits the same functions"
        " as SGD without decay at a learning rate that grows exponentially. The paper's argument is meant for nets without"
        " this property, too.",
        "exponential-lr",
    ),
    PaperStep(
        "The next check: nets without normalization",
        "The paper says that its explanation, unlike that by an effective learning rate, does not need scale invariance,"
        " and shows one such net. What lam does there, and whether anything like an effective learning rate orders the"
        " runs, is left open.",
        "no-normalization",
    ),
)

_WHY_TEXT = (
    PaperStep(
        "Language models: a higher loss can be the better point",
        "Figure 6: GPT-2 with 124 million parameters, AdamW, a cosine that ends at a tenth, less than one pass over the"
        " text. With decay the training loss is higher for most of the run and lower at the end. After a branch at a tiny"
        " learning rate from an earlier checkpoint the runs with and without decay almost coincide, and from the last one"
        " decay is ahead.",
        "lm-schedules",
    ),
    PaperStep(
        "Language models: an effective learning rate",
        "Figure 7: a run without decay whose learning rate is rescaled so that lr / ||w|| follows that of a run with decay"
        " has the whole loss curve of that run, in float32. Matching lr / ||w||^2 diverges early.",
        "lm-effective-lr",
    ),
    PaperStep(
        "Language models: no regularization",
        "Figure 19: the validation loss is a function of the training loss, whatever lam. Decay changes how well the"
        " training loss is optimized, and not the gap between the two.",
        "lm-generalization",
    ),
    PaperStep(
        "Language models: what does not matter",
        "Figures 20 to 23: whether the gains of LayerNorm decay, unless lam is large; whether decay is decoupled or in the"
        " loss; whether the optimizer is Adam or SGD with momentum. Averaging the weights removes a part of what decay"
        " adds to the loss at a constant learning rate, and less than a branch at a tiny rate.",
        "lm-ablations",
    ),
    PaperStep(
        "Low precision: the divergence that decay prevents",
        "Figures 8, 24 and 25: under autocast to bfloat16 GPT-2 without decay diverges at a large learning rate, after 28,000"
        " to 43,000 of 50,000 steps, and clipping does not help. With decay it does not, nor in float32. Smaller rates are"
        " stable without decay.",
        "bf16-divergence",
    ),
    PaperStep(
        "Low precision: where training breaks",
        "The paper conjectures that large weights make rounding matter, and varies neither the precision nor the norm. Both"
        " are varied here, and where numbers are rounded; the claims are ours.",
        "precision-threshold",
    ),
    PaperStep(
        "Low precision: weights that are stored in it",
        "The paper speaks of the precision of the weights; its code keeps them in float32. What rounding takes from updates"
        " and from decay where weights are bfloat16 between steps is another question; the claims are ours.",
        "lost-updates",
    ),
    PaperStep(
        "Low precision: adding terms of disparate scales",
        "The paper's conjecture is that large weights make additions of terms of disparate scales inexact in bfloat16. The"
        " study here has the smallest cases of such additions; what moves the weights to large values is put in by hand.",
        "disparate-scales",
        panels=("sum", "neuron", "saved", "softmax", "tolerated"),
    ),
    PaperStep(
        "Language models: beside dropout",
        "The models of the paper are trained without dropout, on text that is hardly repeated. What decay does where a"
        " text is read several times, and beside dropout, is left open; most claims of this step are ours.",
        "lm-dropout",
    ),
    PaperStep(
        "Language models: bias and variance",
        "Section 3 explains the crossing curves by SGD on a quadratic: the excess risk is at most a bias, which shrinks"
        " faster at a larger rate, plus a variance, which grows with it. Decay raises the effective rate, and a small rate"
        " at the end takes the variance away.",
        "bias-variance",
    ),
    PaperStep(
        "How long the weights remember",
        "The product lr * lam has a meaning: after about 1 / (lr lam) steps the weights have forgotten where they were."
        " The paper gives no rule for choosing it. Others do (Wang and Aitchison 2024, arXiv 2405.13698; Bergsma et al."
        " 2025, arXiv 2505.13738), and the claims of this step are theirs.",
        "timescale",
    ),
    PaperStep(
        "An open question: over-trained transformers",
        "The paper studies over-training with nets for images, and transformers in less than one pass. Whether"
        " stabilization and the smaller curvature are there, too, where a transformer reads a text many times, is left"
        " open. The claims of this step carry over what the paper says of images.",
        "transformer-curvature",
    ),
)

PAPERS: tuple[Paper, ...] = (
    Paper(
        key="why",
        title="Why Do We Need Weight Decay in Modern Deep Learning?",
        authors="D'Angelo, Andriushchenko, Varre, Flammarion",
        reference="NeurIPS 2024, arXiv 2310.04415",
        steps=_WHY_IMAGES + _WHY_TEXT,
    ),
    Paper(
        key="scheduling",
        title="On the Overlooked Pitfalls of Weight Decay and How to Mitigate Them: A Gradient-Norm Perspective",
        authors="Xie, Xu, Zhang, Sato, Sugiyama",
        reference="NeurIPS 2023, arXiv 2011.11152; earlier versions: Understanding and Scheduling Weight Decay",
        steps=(
            PaperStep(
                "The table of optimizers",
                "SGD, Adam and its variants with L2 at one lam, AdamW at another, and Adam with stable decay, AdamS: in the"
                " paper's table AdamS is the best of Adam's family, as good as SGD or better, and Adam with L2 far behind. Its"
                " author later wrote that stable decay has no universal advantage. In the study here each optimizer has a lam"
                " of its own, tuned on the same budget.",
                "stable-decay",
            ),
            PaperStep(
                "Large gradient norms, first: what a norm does to its gradient",
                "The paper finds large gradient norms at the end of training with decay, and takes them for a pitfall. In a"
                " net with normalization a gradient grows as its weight shrinks, and where decay and updates balance, norm,"
                " angle and gradient have formulas that know nothing of the loss. The study here tests those formulas; whether"
                " the rest of the gradient norm says anything is not tested yet.",
                "equilibrium",
                claims=("net-sgd", "net-adamw", "net-adams", "net-gradient", "late-rise", "rise-lags", "corrected"),
                panels=("net", "late-rise"),
                published=False,
            ),
            PaperStep(
                "The linear scaling rule",
                "For larger batches an earlier version of the paper scales lam with the batch, instead of the learning"
                " rate. It does so for SGD on images; the study here tests the same rule for AdamW on text, at a fixed"
                " number of tokens.",
                "timescale",
                claims=("batch", "matched"),
                panels=("optimum-batch", "sweep-batch"),
                published=False,
            ),
        ),
        untested="Not tested here: that decay leaves large gradient norms at the end of training, that scheduling it by"
        " the gradient norm lowers them, that stable decay is more robust to lr and lam, and that the best lam falls with the"
        " time of training. The rule itself, AdamS and SGDS, is halflife.Stable.",
    ),
    Paper(
        key="early",
        title="Understanding Decoupled and Early Weight Decay",
        authors="Bjorck, Weinberger, Gomes",
        reference="AAAI 2021, arXiv 2012.13841",
        steps=(
            PaperStep(
                "Adam with L2 against decoupled decay",
                "For Adam the paper traces the harm of L2 to the first-moment buffer, where the gradient of the penalty"
                " mixes with that of the loss; decoupling avoids it and makes lam easier to tune. The study here compares"
                " L2 in the loss with decoupled decay in a language model; it does not take the buffer apart.",
                "lm-ablations",
                claims=("l2-inside", "l2-outside", "l2-inside-as-good", "l2-outside-as-good"),
                panels=("l2",),
                published=False,
            ),
        ),
        untested="Not tested here: that decay matters only early in the run, that it keeps the norm small for the whole"
        " run even then, and that the growth of the norm without decay depends on the data.",
    ),
)
