"""One ``train()``, ``val()`` or ``test()`` from its first site to its last.

``settings`` is what a Runner is given, checked; ``session`` enters and leaves; ``loops`` is the order in between;
``resume`` is what a run saves and puts back, ``rundir`` its folder, ``best`` and ``kept`` which checkpoints stay.
Imports everything below, and neither hooks nor ``runner``.
"""
