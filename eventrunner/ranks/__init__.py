"""Many processes as one run: which of how many this is, and what they do together.

``world`` joins them, ``control`` is the store by which they speak beside the collectives, ``parallel`` wraps a model,
``guard`` keeps one rank from communicating by itself. The only importers of torch.distributed. Imports words and
``lanes``.
"""
