"""The page of a run: one HTML file without external parts, built from the files of the run folder.

Read `build.py` first, then `load.py` (files into records) and `page.py` (records into sections).
"""
