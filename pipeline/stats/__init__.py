"""The statistics of gains: designs, posteriors and verdicts; NumPy and SciPy, no files."""
