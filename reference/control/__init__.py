"""The control plane: what runs, when, and in which blocks. Standard library and NumPy only; never torch."""
