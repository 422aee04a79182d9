"""The parts of a training: optimizers, schedules, metrics, averages, devices, and the position in the data.

None of them knows a run or a hook, and none but ``modules`` (PyTorch's module hooks as sites) a bus. Imports words,
``lanes``, the bus, the encoder of ``checkpoint`` and ``ranks.parallel``. The data: ``dataloader`` (what a loader may
be), ``position`` (where a training stands in it), ``rewind`` (begin a pass behind the used batches),
``stateful_loader`` (or where the loader itself knows that it stands), ``order`` and ``loader_parts`` (what the order
of its batches depends on). A step: ``optim``, ``accumulation`` (the losses of one), ``optim_options``, ``optim_dict``
(several optimizers).
"""
