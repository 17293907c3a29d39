"""What capacity costs and buys on a real model and text: the work behind ``capmoe evaluate``."""
