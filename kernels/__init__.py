"""Arrays in, arrays out: the per-pixel maths. Knows no diffusion, no files, no camera objects."""
