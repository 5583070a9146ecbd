// Sums over the threads of a block, always in the same order: shuffles within a warp, then one warp over the warps' sums.
#pragma once
#include "arguments.cuh"

namespace photonstep {

constexpr int THREADS = 256;  // of every block of every kernel
constexpr int WARP = 32, WARPS = THREADS / WARP;

// The sum over the block, in thread 0; every thread must call it.
__device__ static inline double block_sum(double value) {
    __shared__ double of_warp[WARPS];
    for (int apart = WARP / 2; apart > 0; apart /= 2) value += __shfl_down_sync(0xffffffffu, value, apart);
    if (threadIdx.x % WARP == 0) of_warp[threadIdx.x / WARP] = value;
    __syncthreads();
    double sum = 0;
    if (threadIdx.x == 0)
        for (int warp = 0; warp < WARPS; ++warp) sum += of_warp[warp];
    __syncthreads();  // of_warp may be written again
    return sum;
}

// The sum of parts[at], parts[at + stride], ...: `count` of them, by one block.
__device__ static inline double block_sum_of(const double* parts, int64_t count, int stride, int at) {
    double sum = 0;
    for (int64_t i = threadIdx.x; i < count; i += THREADS) sum += parts[i * stride + at];
    return block_sum(sum);
}

// Adds every thread's value to a total in memory: whole numbers, so that the order does not matter.
__device__ static inline void add_over_block(uint32_t value, uint32_t* total) {
    for (int apart = WARP / 2; apart > 0; apart /= 2) value += __shfl_down_sync(0xffffffffu, value, apart);
    if (threadIdx.x % WARP == 0 && value) atomicAdd(total, value);
}

__device__ static inline void add_over_block(uint32_t value, int64_t* total) {
    for (int apart = WARP / 2; apart > 0; apart /= 2) value += __shfl_down_sync(0xffffffffu, value, apart);
    if (threadIdx.x % WARP == 0 && value) atomicAdd(reinterpret_cast<unsigned long long*>(total), (unsigned long long)value);
}

}  // namespace photonstep
