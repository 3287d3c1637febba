"""``python -m quantlib`` is the console script ``quantlib``."""

from quantlib.cli import main

if __name__ == "__main__":
    main()
