"""`make torture`: everything that must never happen (docs/threat-model.md), tried thousands of times.

    python -m tests.torture [SECTION...] [--quick] [--plant FAULT]

A section is a module with `run(plan) -> list[Row]` and `PLANTS`, faults by name: each is planted in
the code under test and must make the section fail, or the section proves nothing. sections.py lists
them; pytest runs each in its quick form, with and without its faults.
"""
