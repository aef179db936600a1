"""The harness that compares combinations of units: what each costs, and what it does to the pictures.

cases.py which combinations, runner.py and probe.py how they are measured, record.py what is written down, table.py,
page.py and plots.py how it is shown, compare.py how it is held against an earlier record.
"""
