"""The semantics, in plain PyTorch: readable, slow, and what every backend must match.

Each op is one file. These functions serve every device that has no kernels of its own. On a GPU
``grouped_mlp`` is the one that waits for the device: it loops over experts on the host.
"""

from .combine import combine as combine
from .dispatch import dispatch as dispatch
from .gate import gate as gate
from .grouped_mlp import grouped_mlp as grouped_mlp
from .moe import moe as moe
from .pack import pack as pack
from .select import select as select
