"""``python -m pipelines`` is the program ``quantlib``, as it was called before."""

from quantlib.cli import main

if __name__ == "__main__":
    main()
