"""Measures what the program promises, as ratios within one run: ``make bench``; see docs/benchmarks.md."""
