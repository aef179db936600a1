"""Training data from files: clips of a folder or a list, bad ones passed over."""
