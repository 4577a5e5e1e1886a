"""The page of a run: one self-contained HTML file, written from what lies in the run folder."""
