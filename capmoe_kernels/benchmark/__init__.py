"""An MoE layer beside other ways to compute it, in one run: the work behind ``capmoe bench``."""
