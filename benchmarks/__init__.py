"""What photonstep claims, measured: quality on real frames, photon bias, speed; each is one command."""
