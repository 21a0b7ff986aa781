"""One of the processes of a test in `test_sharded.py`, started by torchrun."""

import sys
from pathlib import Path

import torch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.test_sharded import agree_with_the_whole_model

    torch.set_num_threads(1)
    agree_with_the_whole_model(sys.argv[1])
    sys.stdout.write("agrees\n")
