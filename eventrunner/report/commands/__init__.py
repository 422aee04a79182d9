"""The sub-commands of ``eventrunner``, one function each: what is asked, and an ``Output`` to answer to.

``output`` has the tables for people and JSON for programs; ``runs`` (ls, show), ``verify`` and ``env`` import no torch
to begin with, ``weights`` (diff, export) does. ``eventrunner.__main__`` reads the command line and calls them.
"""
