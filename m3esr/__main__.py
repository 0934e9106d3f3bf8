"""`python -m m3esr`."""

from m3esr.cli import main

if __name__ == "__main__":
    main()
