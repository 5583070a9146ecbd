// The loops of temporal fusion and of the similarity test; see loops.cpp for why there is no standard library here.
#include "temporal_loops.hpp"

#include "lanes.hpp"
#include "temporal.cuh"

#ifndef PS_VARIANT
#define PS_VARIANT baseline
#endif
#define PS_JOIN_(a, b) a##b
#define PS_JOIN(a, b) PS_JOIN_(a, b)

namespace photonstep {
namespace {

constexpr int64_t PAD = 4;  // columns before and after a row of scratch that repeat its edges
constexpr int64_t REACH = 4;

int64_t clamped(int64_t y, int64_t height) { return y < 0 ? 0 : y >= height ? height - 1 : y; }

// Rows of one intermediate image around a chunk, with their edges repeated.
struct Rows {
    float* first;
    int64_t top, height, stride;
    float* at(int64_t y) const { return first + (clamped(y, height) - top) * stride; }
};

void repeat_edges(float* row, int64_t width) {
    for (int64_t i = 1; i <= PAD; ++i) {
        row[-i] = row[0];
        row[width - 1 + i] = row[width - 1];
    }
}

// sum[x] = rows y - REACH_Y to y + REACH_Y of an image, top first
template <int REACH_Y>
void sum_rows(const Rows& image, int64_t y, int64_t width, float* __restrict sum) {
    const float* row[2 * REACH_Y + 1];
    for (int k = 0; k <= 2 * REACH_Y; ++k) row[k] = image.at(y - REACH_Y + k);
    for (int64_t x = 0; x < width; ++x) {
        float total = row[0][x];
        for (int k = 1; k <= 2 * REACH_Y; ++k) total += row[k][x];
        sum[x] = total;
    }
    repeat_edges(sum, width);
}

// the same along a row, left first
template <int REACH_X>
PS_BOTH float sum_along(const float* at) {
    float total = at[-REACH_X];
    for (int k = 1 - REACH_X; k <= REACH_X; ++k) total += at[k];
    return total;
}

struct Scratch {
    Rows mean, variance, d, gy, gx, gy2, gx2, dgy, dgx, spread;
    float *line[5];
};

Scratch cut(float* memory, const Fuse& k, int64_t top) {
    const int64_t stride = k.width + 2 * PAD, rows = FUSE_CHUNK_ROWS + 2 * REACH;
    Scratch s;
    Rows* all[] = {&s.mean, &s.variance, &s.d, &s.gy, &s.gx, &s.gy2, &s.gx2, &s.dgy, &s.dgx, &s.spread};
    for (Rows* image : all) {
        *image = Rows{memory + PAD, top, k.height, stride};
        memory += rows * stride;
    }
    for (float*& line : s.line) {
        line = memory + PAD;
        memory += stride;
    }
    return s;
}

void follow_light(const Fuse& k, const Scratch& s, int64_t y) {
    const float* __restrict mean = k.mean + y * k.width;
    const float* __restrict variance = k.variance + y * k.width;
    float* __restrict m = s.mean.at(y);
    float* __restrict v = s.variance.at(y);
    const float gain = k.light_gain, shift = k.light_shift, factor = gain > 1.0f ? gain : 1.0f;
    const int64_t width = k.width;
    if (gain == 1.0f && shift == 0.0f)
        for (int64_t x = 0; x < width; ++x) {
            m[x] = mean[x];
            v[x] = variance[x];
        }
    else
        for (int64_t x = 0; x < width; ++x) {
            m[x] = mean_in_light(mean[x], gain, shift);
            v[x] = variance_in_light(variance[x], factor);
        }
    repeat_edges(m, width);
}

void differences(const Fuse& k, const Scratch& s, int64_t y) {
    const float* __restrict z = k.z + y * k.width;
    const float* __restrict m = s.mean.at(y);
    const float* __restrict v = s.variance.at(y);
    const float* __restrict above = s.mean.at(y - 1);
    const float* __restrict below = s.mean.at(y + 1);
    float *__restrict d = s.d.at(y), *__restrict gy = s.gy.at(y), *__restrict gx = s.gx.at(y);
    float *__restrict gy2 = s.gy2.at(y), *__restrict gx2 = s.gx2.at(y);
    float *__restrict dgy = s.dgy.at(y), *__restrict dgx = s.dgx.at(y);
    const int64_t width = k.width;
    for (int64_t x = 0; x < width; ++x) {
        const float difference = (z[x] - m[x]) / square_root(1.0f + v[x]);
        const float slope_y = ((below[x - 1] - above[x - 1]) + 2.0f * (below[x] - above[x]) + (below[x + 1] - above[x + 1])) * 0.125f;
        const float slope_x = ((above[x + 1] - above[x - 1]) + 2.0f * (m[x + 1] - m[x - 1]) + (below[x + 1] - below[x - 1])) * 0.125f;
        d[x] = difference;
        gy[x] = slope_y;
        gx[x] = slope_x;
        gy2[x] = slope_y * slope_y;
        gx2[x] = slope_x * slope_x;
        dgy[x] = difference * slope_y;
        dgx[x] = difference * slope_x;
    }
}

void spread_rows(const Fuse& k, const Scratch& s, int64_t y) {
    float* sum = s.line[0];
    sum_rows<1>(s.d, y, k.width, sum);
    float* __restrict spread = s.spread.at(y);
    const float per_floor = k.per_spread;
    for (int64_t x = 0; x < k.width; ++x) {
        const float small = sum_along<1>(sum + x) * (1.0f / 9.0f);
        spread[x] = counted(small * small, per_floor);
    }
}

// the largest of spread over 5 x 5 px, into line[4]
void largest_spread(const Fuse& k, const Scratch& s, int64_t y) {
    float* __restrict across = s.line[3];
    float* __restrict largest = s.line[4];
    const float* row[5];
    for (int i = 0; i < 5; ++i) row[i] = s.spread.at(y - 2 + i);
    for (int64_t x = 0; x < k.width; ++x) {
        float m = row[0][x];
        for (int i = 1; i < 5; ++i) m = most(m, row[i][x]);
        across[x] = m;
    }
    repeat_edges(across, k.width);
    for (int64_t x = 0; x < k.width; ++x) {
        float m = across[x - 2];
        for (int i = -1; i <= 2; ++i) m = most(m, across[x + i]);
        largest[x] = m;
    }
}

void fuse_row(const Fuse& k, const Scratch& s, int64_t y) {
    const int64_t width = k.width;
    const float* __restrict z = k.z + y * width;
    const float *__restrict m = s.mean.at(y), *__restrict v = s.variance.at(y), *__restrict d = s.d.at(y);
    float* __restrict off = s.line[4];  // begins as the spread
    largest_spread(k, s, y);
    float* sum = s.line[0];
    sum_rows<1>(s.d, y, width, sum);
    for (int64_t x = 0; x < width; ++x) {
        const float small = sum_along<1>(sum + x) * (1.0f / 9.0f);
        off[x] = most(off[x], most(counted(d[x] * d[x], k.per_point), counted(small * small, k.per_small)));
    }
    sum_rows<3>(s.d, y, width, sum);
    for (int64_t x = 0; x < width; ++x) {
        const float large = sum_along<3>(sum + x) * (1.0f / 49.0f);
        off[x] = most(off[x], counted(large * large, k.per_large));
    }
    const Rows* slopes[2][3] = {{&s.gy, &s.gy2, &s.dgy}, {&s.gx, &s.gx2, &s.dgx}};
    for (const auto& axis : slopes) {
        float* power = s.line[1];
        float* moment = s.line[2];
        sum_rows<3>(*axis[1], y, width, power);
        sum_rows<3>(*axis[2], y, width, moment);
        const float* __restrict g = axis[0]->at(y);
        for (int64_t x = 0; x < width; ++x) {
            const float p = sum_along<3>(power + x) * (1.0f / 49.0f), q = sum_along<3>(moment + x) * (1.0f / 49.0f);
            off[x] = most(off[x], seen_moving(g[x], p, q, v[x], k.per_motion));
        }
    }
    float* __restrict mean = k.out_mean + y * width;
    float* __restrict variance = k.out_variance + y * width;
    for (int64_t x = 0; x < width; ++x) {
        const Fused f = fused(z[x], m[x], v[x], off[x], k.emphasis, k.least_gain);
        mean[x] = f.mean;
        variance[x] = f.variance;
    }
}

void fuse_rows(const Fuse& k, int64_t first, int64_t last, float* memory) {
    const int64_t top = clamped(first - REACH, k.height), bottom = clamped(last - 1 + REACH, k.height);
    const Scratch s = cut(memory, k, top);
    for (int64_t y = top; y <= bottom; ++y) follow_light(k, s, y);
    const int64_t upper = clamped(first - 3, k.height), lower = clamped(last + 2, k.height);
    for (int64_t y = upper; y <= lower; ++y) differences(k, s, y);
    for (int64_t y = clamped(first - 2, k.height); y <= clamped(last + 1, k.height); ++y) spread_rows(k, s, y);
    for (int64_t y = first; y < last; ++y) fuse_row(k, s, y);
}

void fused_noise_rows(const FusedNoise& k, int64_t first, int64_t last, float* memory) {
    float* sum = memory + PAD;
    const Rows variance = {const_cast<float*>(k.variance), 0, k.height, k.width};
    for (int64_t y = first; y < last; ++y) {
        sum_rows<4>(variance, y, k.width, sum);
        float* __restrict level = k.level + y * k.width;
        for (int64_t x = 0; x < k.width; ++x) level[x] = square_root(sum_along<4>(sum + x) * (1.0f / 81.0f));
    }
}

// One row of blocks, or the ragged rows below the last whole one: cut squares summed, the largest block mean.
void similarity_rows(const Similarity& k, int64_t first, int64_t last, Similarity* found) {
    constexpr int64_t SPAN = 1024;
    float squared[SPAN], column[SPAN];
    const int64_t block = k.block, blocks = k.width / block;
    const bool whole = last - first == block;
    const int64_t span = SPAN / block * block;
    for (int64_t x0 = 0; x0 < k.width; x0 += span) {
        const int64_t count = k.width - x0 < span ? k.width - x0 : span;
        for (int64_t i = 0; i < count; ++i) column[i] = 0;
        for (int64_t y = first; y < last; ++y) {
            const float* __restrict z = k.z + y * k.width + x0;
            const float* __restrict previous = k.previous + y * k.width + x0;
            for (int64_t i = 0; i < count; ++i) {
                const float difference = z[i] - previous[i], half = difference * difference * 0.5f;
                column[i] += half;
                squared[i] = least(half, k.cut);
            }
            Lanes lanes = {};
            const int64_t even = count & ~15;
            for (int64_t i = 0; i < even; i += 16) lanes += lanes_at(squared + i);
            float sum = sum_of(lanes);
            for (int64_t i = even; i < count; ++i) sum += squared[i];
            found->sum_cut += sum;
        }
        if (!whole) continue;
        const int64_t b1 = (x0 + count) / block < blocks ? (x0 + count) / block : blocks;
        for (int64_t b = x0 / block; b < b1; ++b) {
            float sum = 0;
            for (int64_t i = 0; i < block; ++i) sum += column[b * block - x0 + i];
            found->largest_block = most(sum / (float)(block * block), found->largest_block);
        }
    }
}

}  // namespace

extern const TemporalLoops PS_JOIN(temporal_loops_, PS_VARIANT) = {fuse_rows, fused_noise_rows, similarity_rows};

}  // namespace photonstep
