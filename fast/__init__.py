"""The fast data plane: the reference's interfaces on an NVIDIA GPU, in Triton. It must agree with the reference."""
