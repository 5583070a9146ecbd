"""What photonstep claims, measured: quality on real frames, photon bias, speed. Each is one command that writes JSON."""
