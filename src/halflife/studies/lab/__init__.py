"""The lab trains the runs of studies (`halflife.studies.lab.trainer`). It uses torch, and needs the extra ``study``."""
