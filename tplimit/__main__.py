"""`python -m tplimit`: the command line."""

from tplimit.cli import app

if __name__ == "__main__":
    app()
