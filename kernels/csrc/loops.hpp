// The loops over rows, compiled once for every instruction set; native.cpp picks one when the library is loaded.
#pragma once
#include "arguments.cuh"

namespace photonstep {

constexpr int64_t CHUNK_ROWS = 16;  // sums are made per chunk, then added in order: the same for any number of threads

struct Loops {
    void (*stabilise)(const Stabilise&, int64_t first, int64_t last);
    void (*network_input)(const NetworkInput&, int64_t first, int64_t last);
    void (*sampler_row)(const SamplerRow&, int64_t first, int64_t last);
    void (*normal)(const Normal&, int64_t first, int64_t last);
    void (*electrons)(const Electrons&, int64_t first, int64_t last);
    void (*counts)(const Counts&, int64_t first, int64_t last, double* light);
    void (*block_means)(const BlockMeans&, int64_t first, int64_t last);
    void (*residual)(const Residual&, int64_t first, int64_t last, Residual* sums);
    void (*laplacian)(const Laplacian&, int64_t first, int64_t last);
    void (*preview)(const Preview&, int64_t first, int64_t last);
    void (*content)(const Content&, int64_t first, int64_t last, Content* sums);
};

extern const Loops loops_baseline;
#if defined(PS_X86_VARIANTS)
extern const Loops loops_avx2;
extern const Loops loops_avx512;
#endif

}  // namespace photonstep
