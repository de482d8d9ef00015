"""Programs that measure, not tests; each is run as `python -m tests.benchmarks.NAME`, writes a JSON record and a Markdown table."""
