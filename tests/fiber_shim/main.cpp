// The kernels of the package under the emulation, as a library for ctypes. A kernel is looked up by its name.
#include "cuda_on_fibers.hpp"

#include "kernels.cu"

extern "C" char __start_shared_memory[], __stop_shared_memory[];

extern "C" {

// Runs a kernel over a grid (blocks_x, blocks_y). Returns null, or what the kernel did wrong.
const char* run(void (*kernel)(void*), void* argument, unsigned blocks_x, unsigned blocks_y, unsigned threads, int reversed) {
    fibers::body = kernel;
    fibers::argument = argument;
    fibers::failure = nullptr;
    blockDim = {threads, 1, 1};
    gridDim = {blocks_x, blocks_y, 1};
    for (unsigned n = 0; n < blocks_x * blocks_y && !fibers::failure; ++n) {
        const unsigned block = reversed ? blocks_x * blocks_y - 1 - n : n;
        blockIdx = {block % blocks_x, block / blocks_x, 0};
        memset(__start_shared_memory, 0xcd, __stop_shared_memory - __start_shared_memory);
        fibers::run_block(threads, reversed);
    }
    return fibers::failure;
}

// Kernels that break a rule, to see that the emulation shows it.

void wrong_barrier(int*) {
    if (threadIdx.x != 7) __syncthreads();
}

void wrong_shuffle(int* out) {
    if (threadIdx.x < 16) *out += __shfl_down_sync(0xffffffffu, 1, 1);
}

void wrong_race(int* out) {  // a neighbour's number without a barrier in between
    __shared__ int numbers[256];
    numbers[threadIdx.x] = 1;
    *out += numbers[(threadIdx.x + 1) % 256] == 1;
}

void wrong_memory(int* out) {  // a total that nobody set to zero
    __shared__ int total;
    total += 1;
    __syncthreads();
    if (threadIdx.x == 0) *out = total;
}

}  // extern "C"
