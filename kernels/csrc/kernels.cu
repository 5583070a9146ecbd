// All kernels for a GPU as one source, for NVRTC, nvcc and the CPU emulation of the tests.
#include "frame_numbers.cu"
#include "pixels.cu"
#include "temporal.cu"
