"""Shell: `python -m joulegate` is the command line."""

from joulegate.cli import main

if __name__ == "__main__":
    main()
