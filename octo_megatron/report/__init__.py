"""A run folder as figures a person can judge: summary.json, plots, one page, a table in the terminal."""
