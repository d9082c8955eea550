"""`python -m pipeline` is `sr-archive`."""

from pipeline.cli import main

if __name__ == "__main__":
    main()
