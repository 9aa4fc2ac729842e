"""`python -m tardisd` is the command `tardisd`."""

from tardisd.cli.daemon import main

if __name__ == "__main__":
    main()
