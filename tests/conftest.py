"""One OpenMP thread per test process: more threads than free cores run many times slower."""

import torch

torch.set_num_threads(1)
