"""What a run leaves to be read: lines and rows of the log, its history, the terminal, the table of costs, the trace.

``log`` is the only importer of structlog, and ``terminal`` of rich; ``commands`` (the command line) needs neither.
"""
