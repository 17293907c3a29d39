"""The ops in Triton: for GPUs where the CUDA kernels were not built, or that are not NVIDIA's.

Each op is one file, with the reference's function name and arguments. Nothing here waits for the
device, and grids follow from what the host knows.
"""

from .combine import combine as combine
from .dispatch import dispatch as dispatch
from .gate import gate as gate
from .grouped_mlp import grouped_mlp as grouped_mlp
from .moe import moe as moe
from .select import select as select
