"""The conformance table: every rule on every optimizer, against references that know nothing of halflife."""
