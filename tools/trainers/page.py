"""Write docs/trainers.md from results/trainers.json (what `audit.py` found) and disagreements.toml.

python tools/trainers/page.py docs     write the page
python tools/trainers/page.py check    fail if the page is not what would be written
"""

from __future__ import annotations

import html
import json
import sys
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PAGE = ROOT / "docs" / "trainers.md"
SECTIONS = {
    "Language models": ("huggingface", "text"),
    "Lightning, reinforcement learning, general": ("lightning_and_rl",),
    "Forecasting and tables": ("series",),
    "Vision and spaCy": ("vision",),
    "Graphs, molecules, cells, offline reinforcement learning": ("science",),
}
Row = dict[str, Any]


def pathway_of(group: Row) -> tuple[str, str]:
    """What a group's decay is, and in which words.

    A group that halflife could not probe is not probed, unless its weight decay is 0 and the step with zero
    gradients and the two runs both say that nothing decays; then the page says by what this is known.

    Args:
        group: A group of a row of the findings.

    Returns:
        The pathway and its description for a table.
    """
    runs, lam = group.get("two_runs", {}), group["weight_decay"]
    still = group["check"]["kind"].startswith("nothing moved") and runs.get("kind") == "nothing"
    if group["pathway"] == "not probed" and lam == 0.0 and still:
        return "none", "none (by the two checks; not probed by halflife)"
    words = group["law"].removesuffix(" (native)").replace("|", "/")
    return group["pathway"], "none" if group["pathway"] == "none" else words


def number(value: float | None) -> str:
    """A learning rate or a coefficient."""
    return "-" if value is None else f"{value:.4g}"


def counts(groups: list[Row]) -> str:
    """Tensors and elements of each kind, over some groups."""
    total: dict[str, list[int]] = {}
    for group in groups:
        for kind, (tensors, elements) in group["counts"].items():
            entry = total.setdefault(kind, [0, 0])
            entry[0] += tensors
            entry[1] += elements
    one = {"matrices": "matrix", "embeddings": "embedding", "norms": "norm", "biases": "bias"}
    parts = [f"{n} {one.get(kind, kind) if n == 1 else kind} ({size:,})" for kind, (n, size) in total.items()]
    return ", ".join(parts) or "nothing"


def merged(groups: list[Row]) -> list[list[Row]]:
    """Groups with the same law, learning rate and coefficient together."""
    found: dict[Any, list[Row]] = {}
    for group in groups:
        found.setdefault((pathway_of(group)[1], group["lr"], group["weight_decay"]), []).append(group)
    return list(found.values())


def kinds(groups: list[Row]) -> str:
    """The kinds of parameters in some groups, in words."""
    found = dict.fromkeys(kind for group in groups for kind in group["counts"])
    return ", ".join("others" if kind == "other" else kind for kind in found)


def short(groups: list[Row]) -> str:
    """The law of groups that share one, and the half-life; the list below the table has it in full."""
    pathway, words = pathway_of(groups[0])
    shown = {"decoupled", "cautious", "not probed"}
    text = words.replace(": ", ", ", 1) if pathway in shown else pathway
    life = groups[0]["half_life"]
    return text + (f"; half-life {life:,.0f} steps" if life else "")


def split(row: Row) -> tuple[list[list[Row]], list[Row]]:
    """The groups that decay, those with the same law together, and the groups that do not."""
    decaying = [g for g in row["groups"] if pathway_of(g)[0] != "none"]
    return merged(decaying), [g for g in row["groups"] if pathway_of(g)[0] == "none"]


def does(row: Row) -> str:
    """What one step does with weight decay, for a cell of the table."""
    parts, rest = split(row)
    if not parts:
        return "nothing decays"
    lines = []
    for groups in parts:
        who = "" if len(parts) == 1 and not rest else f"{kinds(groups)}: "
        lines.append(f"{who}{short(groups)}")
    if rest:
        lines.append(f"not {kinds(rest)}")
    return "<br>".join(lines)


def line(row: Row, links: dict[str, str]) -> str:
    """One line of the table."""
    rates = dict.fromkeys(number(g["lr"]) for g in row["groups"])
    values = dict.fromkeys(number(g["weight_decay"]) for g in row["groups"] if pathway_of(g)[0] != "none")
    settings = f"{row['optimizer']}, lr {' and '.join(rates)}, lam {' and '.join(values or {'0': None})}"
    cells = [
        f"**{row['trainer']}** {row['version']}<br>{row['configuration']}<br>{settings}",
        f"**{links[row['verdict']]}**" if row["verdict"] in links else row["verdict"],
        does(row),
    ]
    return "| " + " | ".join(cells) + " |"


def plain_rows(audits: list[Row], families: tuple[str, ...]) -> list[Row]:
    """The rows of some families, without the choices that have tables of their own."""
    rows = [row for audit in audits if audit["family"] in families for row in audit["rows"]]
    return [row for row in rows if not row["option"] and "groups" in row]


def table(audits: list[Row], families: tuple[str, ...], links: dict[str, str]) -> list[str]:
    """The table of some families."""
    # The finding is the second column: narrow screens show two.
    lines = ["| trainer, what was asked for, and the optimizer | finding | what a step does |", "|" + " --- |" * 3]
    return lines + [line(row, links) for row in plain_rows(audits, families)]


def details(audits: list[Row], families: tuple[str, ...]) -> list[str]:
    """The laws in full and what is in the groups, folded away below the table."""
    items = []
    for row in plain_rows(audits, families):
        parts, rest = split(row)
        texts = [f"{counts(groups)}: {pathway_of(groups[0])[1]}" for groups in parts]
        texts += [f"{counts(rest)}: {pathway_of(rest[0])[1]}"] if rest else []
        head = f"{row['trainer']}, {row['configuration']}"
        items.append(f"<li>{html.escape(head, quote=False)}: {html.escape('; '.join(texts), quote=False)}</li>")
    title = "Tensors (and elements) in the groups of each, and the law in full"
    return [f"<details><summary>{title}</summary>", "<ul>", *items, "</ul>", "</details>"]


def choices(rows: list[Row]) -> list[str]:
    """What each `optim=` of transformers makes of weight_decay=0.1."""
    lines = ["| `optim=` | optimizer | matrices, embeddings | biases, LayerNorms | as documented |", "|" + " --- |" * 5]
    for row in rows:
        if "error" in row:
            lines.append(f"| `{row['option']}` | - | not built here: {row['error'].replace('|', '/')} | | not probed |")
            continue
        if row["option"] == "lomo":  # it steps inside the backward pass, where only its reproducer can measure it
            words = "none, as measured by the [reproducer](#transformers-lomo)"
            lines.append(f"| `lomo` | {row['optimizer']} | {words} | none | **no** |")
            continue
        layerwise = "layerwise" in row["option"]
        weights = [g for g in row["groups"] if {"matrices", "embeddings"} & set(g["counts"]) or layerwise]
        small = [g for g in row["groups"] if {"norms", "biases"} & set(g["counts"])]
        first = {pathway_of(g) for g in weights}
        second = {pathway_of(g) for g in small}
        if any(kind == "not probed" for kind, _ in first):
            verdict = "not probed"
        else:
            reached = all(kind != "none" for kind, _ in first)
            spared = all(kind == "none" for kind, _ in second)
            verdict = "yes" if reached and spared else "**no**"
        held = sorted({number(g["weight_decay"]) for g in weights})
        words = "; ".join(sorted({text for _, text in first}))
        spare = "; ".join(sorted({text for _, text in second})) or "-"
        note = " (one attention matrix)" if layerwise else ""
        value = f", lam in the groups: {', '.join(held)}" if held != ["0.1"] else ""
        lines.append(f"| `{row['option']}` | {row['optimizer']} | {words}{value}{note} | {spare} | {verdict} |")
    return lines


def claims(rows: list[Row]) -> list[str]:
    """Timm's choices whose description says how the decay acts."""
    good, odd, missing = [], [], []
    for row in rows:
        text = row["documented"]
        expected = "r = lr^2 / peak_lr * lam" if "orrected" in text else "r = lr * lam" if "ecoupled" in text else ""
        if not expected:
            continue
        if "error" in row:
            missing.append(row["option"])
            continue
        group = next(g for g in row["groups"] if g["weight_decay"])
        (good if group["law"].startswith(f"decoupled: {expected}") else odd).append((row, group))
    built = sum("error" not in row for row in rows)
    text = [
        f"timm has {len(rows)} choices, of which {built} were built (the others need CUDA). The descriptions in its"
        f" registry say of {len(good) + len(odd) + len(missing)} that the decay is decoupled or corrected"
        f" (lr^2 / max_lr). That is what was found for {len(good)}: "
        + ", ".join(f"`{row['option']}`" for row, _ in good)
        + ". The others:",
        "",
        "| choice | description | found | with gradients, two values of `weight_decay` |",
        "|" + " --- |" * 4,
    ]
    for row, group in odd:
        runs = group["two_runs"]
        seen = f"{runs['kind']}: {runs['fraction'] / (group['lr'] * group['weight_decay']):.4g} * lr * lam"
        law = group["law"].removesuffix(" (native)")
        text.append(
            f"| `{row['option']}` | {row['documented']} | {law} | {seen if 'fraction' in runs else runs['kind']} |"
        )
    if missing:
        text += ["", f"Not probed: {', '.join(f'`{name}`' for name in missing)}."]
    text += [
        "",
        "The LAMB variants apply their trust ratio only where `weight_decay` is not 0, so a run without decay differs by"
        " more than the decay; between two values that are not 0 the difference is the same fraction of every weight,"
        " as described. `madgradw` is [below](#timm-madgradw).",
    ]
    return text


def norms(row: Row) -> list[str]:
    """Which architectures have norm gains that decay."""
    text = [
        f"Of {row['architectures']} model types that build from their default configuration"
        f" ({len(row['not_built'])} do not, or need another library):",
        "",
        "| normalization | model types with gains that decay | which |",
        "| --- | --- | --- |",
    ]
    for family, found in row["norms"].items():
        example_type, (_, example) = next(iter(found.items()))
        names = ", ".join(found)
        text.append(f"| {family} | {len(found)} | {names}; for example `{example}` in {example_type} |")
    return text


def sections(entries: list[Row], checks: dict[str, Row], audits: list[Row]) -> list[str]:
    """One section per disagreement."""
    text: list[str] = []
    for entry in entries:
        check = checks[entry["key"]]
        text += [f'<a id="{entry["key"]}"></a>', "", f"### {entry['trainer']}: {entry['title']}", ""]
        for quote in entry["quotes"]:
            text += [f"> {quote['text']}", "> ", f"> (`{quote['file']}`)", ""]
        text += [entry["behaviour"].strip(), ""]
        if entry["key"] == "transformers-norms":
            text += [*norms(next(r for a in audits for r in a["rows"] if "norms" in r)), ""]
        text += ["```text", entry["reproducer"].strip(), "```", ""]
        if check["reproduced"] and not check["quotes_missing"]:
            continue
        text += ["**Not confirmed by the last audit.**", ""]
    return text


def page(findings: Row, entries: list[Row]) -> str:
    """The whole page."""
    audits = findings["audits"]
    rows = [row for audit in audits for row in audit["rows"]]
    plain = [row for row in rows if not row["option"] and row["groups"]]
    groups = [group for row in rows for group in row["groups"]]
    links = {entry["key"]: f"[{entry['title']}](#{entry['key']})" for entry in entries}
    checked = sum(group["agrees"] is True for group in groups)
    against = sum(group["agrees"] is False for group in groups)
    trainers = {row["package"] for row in plain}
    failed = [audit for audit in audits if audit["failed"]]
    text = [
        "# Trainers",
        "",
        f"What real trainers do with weight decay: the optimizers that {len(trainers)} packages build by their own"
        f" set-up code, {len(plain)} configurations, audited on {findings['date']} with torch {findings['torch']} on a"
        " CPU. Made by `tools/trainers/audit.py`, which makes environments of its own. To repeat it from a clean clone:",
        "",
        "```sh",
        "python tools/trainers/audit.py",
        "```",
        "",
        "## How",
        "",
        "Each trainer's own code makes the optimizer (`trainer.create_optimizer()`, `model.configure_optimizers()`,"
        " `model.policy.optimizer`, ...) for a small model that is built from a configuration, without weights. From"
        " this object the page says, per parameter group,",
        "",
        "- which parameters are in it: matrices, embeddings, norms (gains and biases of normalizations), biases, others;"
        " the list that unfolds below each table counts tensors, and elements in parentheses;",
        "- by which law they decay: `halflife.laws.live.laws_of` on that object. `r` is the fraction of a weight"
        " that one step removes;",
        "- the half-life of an untouched weight in steps at this learning rate, where a fraction describes the decay."
        " With an L2 term through Adam or RMSprop none does.",
        "",
        "Two checks that share no code with halflife go with each group: one step with gradients of exactly zero, and"
        " two runs with the same random gradients and two values of `weight_decay`. They agree with the law in"
        f" {checked} of {checked + against} groups where a comparison is possible; the others are laws that no single"
        " number describes, and optimizers that could not be stepped here, which are called *not probed*. What is not a"
        " torch optimizer (fastai, spaCy, keras) was compared in two runs only. *As documented* means that the"
        " documentation of the installed version (docstrings, help texts, configuration files) says nothing that"
        " contradicts what was found; *not documented* means that decay happens of which it says nothing.",
        "",
        "Every quote below was found in the installed files by the audit, and every reproducer was run.",
        "",
        "## What was found",
        "",
        *[f"- [{entry['trainer']}: {entry['title']}](#{entry['key']})" for entry in entries],
        "",
        "Everything else behaves as documented, which is most of it. Many trainers leave the decay at 0. flair's"
        " `fine_tune`, litgpt and a recipe of torchtune do not mention it and get the 0.01 of torch's AdamW, on every"
        " parameter.",
    ]
    for title, families in SECTIONS.items():
        text += ["", f"## {title}", "", *table(audits, families, links), "", *details(audits, families)]
    option = {audit["family"]: [row for row in audit["rows"] if row["option"]] for audit in audits}
    timm = [row for audit in audits if audit["case"] == "timm" for row in audit["rows"] if row["option"]]
    text += ["", "## Every `optim=` of transformers with `weight_decay=0.1`", ""]
    text += [
        'BERT, with `optim_target_modules=["attention"]` for GaLore and APOLLO. Documented: "Weight decay'
        ' coefficient applied by the optimizer", "excluded from bias and LayerNorm parameters".',
        "",
    ]
    text += choices(option["transformers_choices"])
    text += ["", "## timm's descriptions of its optimizers", "", *claims(timm)]
    text += ["", "## Disagreements", "", *sections(entries, {c["key"]: c for c in findings["disagreements"]}, audits)]
    text += ["## Not audited", ""]
    text += [f"- {audit['family']} / {audit['case']}: {audit['failed']}" for audit in failed]
    text += [
        "- speechbrain: torchaudio's compiled part does not load beside this torch.",
        "- Not tried: composer, NeMo, AutoGluon, and many others.",
        "- What a trainer adds to the loss itself (pykeen's regularizers, for example) is not in its optimizer, and not here.",
        "- timm and ultralytics were run beside a torchvision whose compiled operators do not load; no optimizer uses them.",
    ]
    return "\n".join(text).rstrip() + "\n"


def written() -> str:
    """The page as the committed findings give it."""
    findings = json.loads((ROOT / "results" / "trainers.json").read_text(encoding="utf-8"))
    entries = tomllib.loads((HERE / "disagreements.toml").read_text(encoding="utf-8"))["disagreement"]
    # The families of docs/optimizers.md are written by ../optimizer_laws.py.
    findings["audits"] = [a for a in findings["audits"] if not a["family"].startswith("optimizers")]
    return page(findings, [entry for entry in entries if "page" not in entry])


if __name__ == "__main__":
    if sys.argv[1:] == ["docs"]:
        PAGE.write_text(written(), encoding="utf-8")
    elif sys.argv[1:] == ["check"]:
        if PAGE.read_text(encoding="utf-8") != written():
            sys.exit("docs/trainers.md is not what tools/trainers/page.py writes; run it with `docs`.")
    else:
        sys.exit((__doc__ or "").strip())
