"""From readings to verdicts: statistics, decision rules, claims, and what a store holds of a study."""
