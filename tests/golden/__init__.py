"""Golden cases: numbers taken by running the original programs, and the code that replays them on our networks.

`python -m tests.golden DIRECTORY` runs every case file of a directory; pytest runs the same code over this folder.
"""
