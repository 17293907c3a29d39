"""``python -m capmoe_kernels.cli`` is ``capmoe``."""

from . import main

main()
