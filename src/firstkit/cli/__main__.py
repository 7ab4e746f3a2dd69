"""``python -m firstkit.cli``: the command ``first``."""

from firstkit.cli.main import run

if __name__ == "__main__":
    run()
