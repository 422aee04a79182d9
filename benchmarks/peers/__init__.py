"""The contenders of iteration.py, one module each.

Each module has ``PACKAGE``, the distribution whose version is reported; ``DIFFERS``, sentences on what it does more, or
less, than the bare loop; and ``VARIANTS``, functions of a :class:`peers.task.Task` and an empty folder by the name
under which they are reported. The first of them does all that the task asks for, others leave something out.
"""
