"""Work in the background: first in, first out per lane, waited for at barriers.

``task`` is one piece of it, ``lane`` a queue, ``lanes`` those of a run, ``loop`` what they run on (the only importer of
anyio), ``importable`` what a worker process can find, ``signals`` what asks a process to end. Imports words alone.
"""
