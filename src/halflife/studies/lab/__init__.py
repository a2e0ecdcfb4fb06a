"""The lab trains the runs of studies. It uses torch, and needs the extra ``study``.

Each kind of run has one trainer, and all trainers have the same arguments and results:

    train(spec, *, sink, folder, progress, data_folder, device, parent, stop) -> costs

- ``spec``: the run.
- ``sink``: called with each `Reading`; after a resume, those since the checkpoint come again, equal to the bit.
- ``folder``: where a run that resumes keeps its checkpoint, and what later runs start from.
- ``progress``: called now and then with the steps done, the steps in all, and a loss.
- ``data_folder``: where data that are not shipped lie.
- ``device``: a torch device.
- ``parent``: the folder of what the parent kept, for a run that starts from another.
- ``stop``: asked now and then; once it says yes, the run keeps a checkpoint, if it resumes at all, and ends.

A trainer makes no use of an argument that its runs do not need. The costs are those of `halflife.studies.lab.cost.Costs`. A
number that becomes NaN or infinite ends a run with `RunFailedError`, and ``stop`` with `RunStoppedError`.
"""
