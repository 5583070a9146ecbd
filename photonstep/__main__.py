"""``python -m photonstep``: the same as the command ``photonstep``."""

from photonstep.cli import main

if __name__ == "__main__":
    main()
