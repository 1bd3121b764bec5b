"""What `python -m engine.benchmark` measures, on what, against what, and the page that shows it."""
