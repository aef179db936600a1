"""`python -m omniavatar` is `omni`."""

from omniavatar.cli import main

if __name__ == "__main__":
    main()
