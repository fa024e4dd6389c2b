"""Data for training: songs on disk -> decoded audio -> chunks -> batches.

songs.py      which songs; each source mapped from the cache
cache.py      decoded audio, shared by all runs (decode.py: one entry of it)
candidates.py which songs a place is drawn from
places.py     where in a song to cut
augment.py    what is done to a source
effects.py    what a studio does to it
chunks.py     one chunk, from its index alone
loader.py     batches of them, loaded ahead
cli.py        tfx data: check.py, preview.py, musdb.py
"""
