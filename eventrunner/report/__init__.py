"""What people see of a run: the log's lines, its history, the terminal, the table of costs and the trace.

``log`` is the only importer of structlog, and ``terminal`` of rich.
"""
