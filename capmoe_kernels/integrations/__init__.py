"""Other libraries' models on these kernels. Import the one you need: each needs its library."""
