"""The documentation's site: pages that are made from the code, and how mkdocs gets them. `make docs` builds it."""
