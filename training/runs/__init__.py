"""Several runs: from a file, compared, tuned."""
