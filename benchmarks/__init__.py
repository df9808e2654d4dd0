"""What we measure, a file each: `python -m benchmarks.NAME` in the repository's root writes results/NAME.json."""
