"""The parts of a training: optimizers, schedules, metrics, averages, devices, and the position in the data.

None of them knows a run, a bus or a hook. Imports words, ``lanes``, ``bus.signature`` and the codec of ``checkpoint``.
"""
