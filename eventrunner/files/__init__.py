"""Every change to a disk, and every bounded read.

``disk`` writes, syncs, renames and reads, ``replace`` puts a text in another's place, ``lock`` keeps a folder for one
process. Imports errors alone.
"""
