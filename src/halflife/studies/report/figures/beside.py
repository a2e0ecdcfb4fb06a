"""The paper's numbers beside ours. They decide nothing; a reader sees how far this setting is from the paper's."""

from __future__ import annotations

from halflife.studies.evidence.verdicts import MIN_SEEDS, StudyResults

__all__ = ["HEADER", "beside_rows"]

HEADER = ("quantity", "paper", "where", "here")
HOW = {"text": "", "fig-read": " (read off the figure)", "notebook": " (from the published notebook)"}


def beside_rows(results: StudyResults) -> list[tuple[str, str, str, str]]:
    """The paper's numbers and ours, as text.

    Returns:
        Quantity, the paper's number (marked where it was read off a figure), where it stands, ours; none when the study
        names no numbers.
    """
    seeds = len(results.seeds(results.main_size))
    whole = results.manifest.get("max_steps") is None and not results.diverged_arms(results.main_size)
    ready = seeds >= MIN_SEEDS and whole
    return [
        (
            item.quantity,
            f"{item.published}{HOW[item.how]}",
            item.where,
            item.ours(results) if ready else "not measured yet",
        )
        for item in results.study.published
    ]
