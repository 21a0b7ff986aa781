"""The reference model: a small trained language model that comes with the package.

`corpus`, `grammar` and `subjects` write its training text, `recipe` trains it,
`evaluate` and `card` measure it, and `weights` holds its Hugging Face files.
"""

from pathlib import Path


def path() -> Path:
    """The folder of the shipped Hugging Face files.

    >>> (path() / "config.json").exists()
    True
    """
    return Path(__file__).parent / "weights"
