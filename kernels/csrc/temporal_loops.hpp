// The loops of temporal fusion and of the similarity test, compiled once for every instruction set.
#pragma once
#include "arguments.cuh"

namespace photonstep {

constexpr int64_t FUSE_CHUNK_ROWS = 32;

// floats of scratch that fuse and fused_noise need, each thread its own
constexpr int64_t fuse_scratch(int64_t width) { return (10 * (FUSE_CHUNK_ROWS + 8) + 5) * (width + 8); }

struct TemporalLoops {
    void (*fuse)(const Fuse&, int64_t first, int64_t last, float* scratch);  // at most FUSE_CHUNK_ROWS rows
    void (*fused_noise)(const FusedNoise&, int64_t first, int64_t last, float* scratch);
    void (*similarity)(const Similarity&, int64_t first, int64_t last, Similarity* found);
};

extern const TemporalLoops temporal_loops_baseline;
#if defined(PS_X86_VARIANTS)
extern const TemporalLoops temporal_loops_avx2;
extern const TemporalLoops temporal_loops_avx512;
#endif

}  // namespace photonstep
