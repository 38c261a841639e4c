"""One torch thread: the models of the tests are small, and threads that wait for each other cost more than they do."""

import hypothesis
import torch

torch.set_num_threads(1)
hypothesis.settings.register_profile("shoal", deadline=None)  # a busy machine is no defect
hypothesis.settings.load_profile("shoal")
