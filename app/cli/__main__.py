"""`python -m app.cli`: the command line where the distribution is not installed."""

from app.cli.main import main

if __name__ == "__main__":
    main()
