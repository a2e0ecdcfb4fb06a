"""The lab: names a run and trains it, one readable loop per kind of run. Needs the extra ``study``."""
