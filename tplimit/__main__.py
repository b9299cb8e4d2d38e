"""`python -m tplimit`: the command line."""

from tplimit.commands.main import app

if __name__ == "__main__":
    app()
