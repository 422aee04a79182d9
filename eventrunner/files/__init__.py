"""Every change to a disk, and every bounded read.

``disk`` writes, syncs, replaces and removes; ``reader`` reads what may be damaged or hostile; ``lock`` keeps a folder
for one process. Imports errors alone.
"""
