"""`python -m vrl3data`."""

from vrl3data.cli import main

if __name__ == "__main__":
    main()
