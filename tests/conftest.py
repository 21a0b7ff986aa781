"""Before any test module is imported: types are enforced, nothing is downloaded."""

import os

import jaxtyping
import torch
from hypothesis import HealthCheck, settings

os.environ["HF_HUB_OFFLINE"] = "1"

# Every annotation of the package is checked at run time, in the tests only. As for a
# static checker, an int is a float.
CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
jaxtyping.install_import_hook("steergauge", CHECKER)

# One process a core: more threads would only fight each other.
torch.set_num_threads(1)

# The same examples on every machine, and no failure because a machine is busy.
settings.register_profile(
    "laws",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("laws")
