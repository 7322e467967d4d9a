"""Examples that run as `python -m treepie.examples.NAME`."""
