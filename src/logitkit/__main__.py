"""`python -m logitkit` is the `logitkit` command."""

from logitkit.cli import main

if __name__ == "__main__":
    main()
