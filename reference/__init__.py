"""The reference engine: it defines what every part of quire means, in plain Python, NumPy and torch."""
