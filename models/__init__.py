"""The training side: networks, simulated structures and cameras, data, training. Needs the `train` extra (torch)."""
