"""From a study to finished runs: the plan, worker processes, several processes on one run, progress."""
