"""One thread everywhere: the threads of small operations wait for each other, on busy cores a hundredfold."""

import os

import torch

torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
