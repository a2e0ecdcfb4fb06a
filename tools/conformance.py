"""Write docs/conformance.md: every rule on every optimizer of torch, as `halflife selfcheck` finds it.

python tools/conformance.py write    run the whole table and write the page (about a minute)
python tools/conformance.py check    fail if the page is not what `write` would write today, versions aside
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from halflife.selfcheck.optimizers import OPTIMIZERS, OptimizerCase
from halflife.selfcheck.rules import RULES
from halflife.selfcheck.table import FAMILIES, Report, cell_of, plan, reasons, run_table, versions
from halflife.selfcheck.twin import Outcome

PAGE = Path(__file__).parents[1] / "docs" / "conformance.md"
VERSIONS = "Run with "
MARKS = {"ok": "yes", "refused": "-", "FAILED": "**no**", "": ""}

INTRO = """# Conformance

Every rule on every optimizer of `torch.optim`, in each form that torch offers (for-loop, foreach, fused), on weights of
float32, float64, bfloat16 and float16. This page is written by `tools/conformance.py`. The same table runs on your machine,
with the versions and the device that you have:

```sh
halflife selfcheck
halflife selfcheck --device cuda
```

## How a case is checked

A bare twin of the optimizer, without any decay, gets the same gradients and tells the update. What the paper of the rule
says about what happens around an update is written out in float64 (`halflife.selfcheck.references`), from the formula and
not from the code that is checked. After each of six steps every weight is compared. The problem has three groups with
different peaks, the last without decay; a learning rate that rises, falls and touches 0; a frozen parameter, one that never
gets a gradient, one whose gradient comes and goes; gradients of exactly 0, so that a mask meets its boundary.

A weight may deviate by half a unit in the last place of its type for each time that it is rounded on its way, and no more:
between four times (a plain fraction) and twelve (Adam written out). The rules that answer a number from the learning rate and
the step alone differ in that number only; three of them run in bfloat16 and float16, all of them in float32 and float64.
"""


OTHERS = """
## Other libraries

`tests/optim/test_third_party.py` runs one rule of each kind on 25 optimizers of pytorch-optimizer, 8 of torch-optimi and the
`RMSpropTFLike` of stable-baselines3 in the same way, on torchao's 8-bit AdamW beside a twin, and in training with PPO and
A2C. They are right wherever a `weight_decay` of 0 in a group switches off all decay of it. What no hook can change:

- Schedule-free optimizers decay where the gradient is taken. The sequence z, of which the average is made, is in
  their state and does not shrink, so that a part of the decay comes back.
- A decay under another name goes on: `weight_decay_1d` of MARS, `lambd` of torch's ASGD. Set it to 0 yourself.
- Where the size of the step depends on the weight (trust ratios of LARS and LAMB, the projection of AdamP, the relative step of
  AdaFactor, Prodigy's distance), it sees the weight after the decay. torch's own Adafactor is given its decay natively, and its
  step is the same as without halflife.
- Lookahead (Ranger) pulls the weights back to a slow copy that does not shrink by itself.
"""


def row_of(case: OptimizerCase, outcomes: Sequence[Outcome]) -> str:
    """Return one line of the table.

    Args:
        case: The optimizer.
        outcomes: All outcomes.

    Returns:
        The line.
    """
    cells = (MARKS[cell_of(outcomes, case.name, family)] for family in FAMILIES)
    return f"| {case.name} | " + " | ".join(cells) + " |"


def form_row_of(case: OptimizerCase) -> str:
    """Return one line of the table of forms.

    Args:
        case: The optimizer.

    Returns:
        The line.
    """
    forms = ", ".join(form for form in case.forms if form) or "the only one"
    how = "its own decay" if case.native else "own pass"
    if case.native and "capturable" in case.forms:
        how += "; own pass if capturable"
    groups = 'every group, with `select="all"`' if not case.own else "groups with `weight_decay` above 0"
    return f"| {case.name} | {forms} | {how} | {groups} |"


def render(report: Report) -> str:
    """Return the page.

    Args:
        report: What the whole table gave.

    Returns:
        Markdown.
    """
    found = versions(report.device)
    held = sum(outcome.status == "ok" for outcome in report.outcomes)
    refused = sum(outcome.status == "refused" for outcome in report.outcomes)
    answered = report.num_bad_inputs - len(report.wrong_answers)
    lines = [INTRO, "## The table", ""]
    lines += [f"{VERSIONS}torch {found['torch'].partition('+')[0]} on a {found['device'].upper()}.", ""]
    lines += [
        f"{held} cases hold, {refused} are refused with a sentence, {len(report.failed)} fail. {answered} of"
        f" {report.num_bad_inputs} bad inputs",
        "(a learning rate that is NaN, a fraction of 1, a reference of the wrong shape ...) are refused with their sentence,",
        "and a step that is refused leaves the weights as they are.",
        "",
        "| | " + " | ".join(f"`{family}`" for family in FAMILIES) + " |",
        "| --- |" + " --- |" * len(FAMILIES),
        *(row_of(case, report.outcomes) for case in OPTIMIZERS),
        "",
        '"yes": as its reference. "-": refused:',
        "",
    ]
    for family in FAMILIES:
        for sentence, names in reasons(report.outcomes, family).items():
            lines.append(f'- `{family}` on {"; ".join(names)}: "... {sentence} ..."')
    lines += [
        "",
        "An optimizer without a `weight_decay` setting refuses the rules that take each group's own value: it needs a `lam`.",
        "",
        "## Forms",
        "",
        "What carries out a fraction: the optimizer's own decay where that is exact, else a pass of halflife over the weights.",
        "The capturable form is for accelerators.",
        "",
        "| | forms | a fraction is carried out by | what decays |",
        "| --- | --- | --- | --- |",
        *(form_row_of(case) for case in OPTIMIZERS),
        "",
        "## Variants of the rules",
        "",
    ]
    for family in FAMILIES:
        names = [rule.name for rule in RULES if rule.family == family]
        lines.append(f"- `{family}`: {'; '.join(names)}")
    return "\n".join(lines) + "\n" + OTHERS


def main() -> None:
    """Write the page, or check it."""
    if sys.argv[1:] not in (["write"], ["check"]):
        sys.exit(__doc__)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = run_table(plan())
    if not report.holds:
        sys.exit("\n".join([*map(str, report.failed), *map(str, report.wrong_answers.items())]))
    text = render(report)
    if sys.argv[1] == "write":
        PAGE.write_text(text, encoding="utf-8")
        return
    pages = (page.splitlines() for page in (text, PAGE.read_text(encoding="utf-8")))
    new, old = ([line for line in page if not line.startswith(VERSIONS)] for page in pages)
    if new != old:
        sys.exit(f"{PAGE} is not what this tool writes: run `python tools/conformance.py write`")


if __name__ == "__main__":
    main()
