// Temporal fusion and the similarity test for a GPU, over the same maths header as temporal_loops.cpp and with its order of
// sums, so that both give the same bits. A block works on TILE_X by TILE_Y pixels with what lies around them in shared
// memory; a place outside the image holds what the nearest pixel inside has.
#include "reduce.cuh"

#include "temporal.cuh"

using namespace photonstep;

namespace {

constexpr int TILE_X = 32, TILE_Y = 8;  // THREADS pixels
constexpr int LARGE = 3, SPREAD = 2;    // reach of the 7 x 7 and 5 x 5 windows
constexpr int FAR = LARGE + 1;          // a slope looks one pixel further

struct Tile {
    int64_t left, top, width, height;
    __device__ int64_t x(int64_t at) const { return inside(left + at, width); }
    __device__ int64_t y(int64_t at) const { return inside(top + at, height); }
    __device__ static int64_t inside(int64_t at, int64_t size) { return at < 0 ? 0 : at >= size ? size - 1 : at; }
};

__device__ Tile tile_of(int64_t width, int64_t height) {
    return Tile{(int64_t)blockIdx.x * TILE_X, (int64_t)blockIdx.y * TILE_Y, width, height};
}

// An image around the tile, REACH pixels more on every side, in shared memory.
template <int REACH>
struct Around {
    static constexpr int WIDE = TILE_X + 2 * REACH, HIGH = TILE_Y + 2 * REACH;
    float* values;
    __device__ float& at(int64_t y, int64_t x) const { return values[(y + REACH) * WIDE + x + REACH]; }
    // work(y, x) for every place, shared among the threads
    template <class Work>
    __device__ static void each(const Work& work) {
        for (int i = threadIdx.x; i < WIDE * HIGH; i += THREADS) work(i / WIDE - REACH, i % WIDE - REACH);
        __syncthreads();
    }
};

// Sums of 2 REACH + 1 rows, top first, for every column around the tile.
template <int REACH, class Value>
__device__ void sum_rows(float* sums, const Value& value) {
    constexpr int WIDE = TILE_X + 2 * REACH;
    for (int i = threadIdx.x; i < WIDE * TILE_Y; i += THREADS) {
        const int y = i / WIDE, x = i % WIDE - REACH;
        float total = value(y - REACH, x);
        for (int k = 1 - REACH; k <= REACH; ++k) total += value(y + k, x);
        sums[i] = total;
    }
}

template <int REACH>
__device__ float sum_along(const float* sums, int y, int x) {
    const float* at = sums + y * (TILE_X + 2 * REACH) + x + REACH;
    float total = at[-REACH];
    for (int k = 1 - REACH; k <= REACH; ++k) total += at[k];
    return total;
}

}  // namespace

extern "C" {

__global__ void ps_fuse(const Fuse* arguments) {
    __shared__ float mean_values[Around<FAR>::WIDE * Around<FAR>::HIGH];
    __shared__ float near_values[3][Around<LARGE>::WIDE * Around<LARGE>::HIGH];
    __shared__ float spread_values[Around<SPREAD>::WIDE * Around<SPREAD>::HIGH];
    __shared__ float sums[5][Around<LARGE>::WIDE * TILE_Y];
    const Fuse k = *arguments;
    const Tile tile = tile_of(k.width, k.height);
    const Around<FAR> mean = {mean_values};
    const Around<LARGE> d = {near_values[0]}, gy = {near_values[1]}, gx = {near_values[2]};
    const Around<SPREAD> spread = {spread_values};
    const bool changed = k.light_gain != 1.0f || k.light_shift != 0.0f;
    const float factor = most(k.light_gain, 1.0f);
    const auto variance_at = [&](int64_t at) {
        return changed ? variance_in_light(k.variance[at], factor) : k.variance[at];
    };
    Around<FAR>::each([&](int y, int x) {
        const float m = k.mean[tile.y(y) * k.width + tile.x(x)];
        mean.at(y, x) = changed ? mean_in_light(m, k.light_gain, k.light_shift) : m;
    });
    Around<LARGE>::each([&](int y, int x) {
        const int64_t row = tile.y(y), column = tile.x(x), at = row * k.width + column;
        const int64_t here = row - tile.top, there = column - tile.left;
        const int64_t above = tile.y(here - 1) - tile.top, below = tile.y(here + 1) - tile.top;
        const int64_t before = tile.x(there - 1) - tile.left, after = tile.x(there + 1) - tile.left;
        const auto step = [&](int64_t y1, int64_t x1, int64_t y0, int64_t x0) { return mean.at(y1, x1) - mean.at(y0, x0); };
        d.at(y, x) = (k.z[at] - mean.at(here, there)) / square_root(1.0f + variance_at(at));
        gy.at(y, x) = (step(below, before, above, before) + 2.0f * step(below, there, above, there) +
                       step(below, after, above, after)) * 0.125f;
        gx.at(y, x) = (step(above, after, above, before) + 2.0f * step(here, after, here, before) +
                       step(below, after, below, before)) * 0.125f;
    });
    const auto small_at = [&](int64_t y, int64_t x) {  // mean of d over 3 x 3 px around a place inside the image
        float total = 0;
        for (int i = -1; i <= 1; ++i) {
            const int64_t column = tile.x(x + i) - tile.left;
            float sum = d.at(tile.y(y - 1) - tile.top, column);
            sum += d.at(y, column);
            sum += d.at(tile.y(y + 1) - tile.top, column);
            total = i == -1 ? sum : total + sum;
        }
        return total * (1.0f / 9.0f);
    };
    Around<SPREAD>::each([&](int y, int x) {
        const float small = small_at(tile.y(y) - tile.top, tile.x(x) - tile.left);
        spread.at(y, x) = counted(small * small, k.per_spread);
    });
    sum_rows<LARGE>(sums[0], [&](int y, int x) { return d.at(y, x); });
    sum_rows<LARGE>(sums[1], [&](int y, int x) { return gy.at(y, x) * gy.at(y, x); });
    sum_rows<LARGE>(sums[2], [&](int y, int x) { return d.at(y, x) * gy.at(y, x); });
    sum_rows<LARGE>(sums[3], [&](int y, int x) { return gx.at(y, x) * gx.at(y, x); });
    sum_rows<LARGE>(sums[4], [&](int y, int x) { return d.at(y, x) * gx.at(y, x); });
    __syncthreads();
    const int x = threadIdx.x % TILE_X, y = threadIdx.x / TILE_X;
    if (tile.left + x >= k.width || tile.top + y >= k.height) return;
    const int64_t at = (tile.top + y) * k.width + tile.left + x;
    float off = 0;
    for (int j = -SPREAD; j <= SPREAD; ++j)
        for (int i = -SPREAD; i <= SPREAD; ++i) off = most(off, spread.at(y + j, x + i));
    const float difference = d.at(y, x), small = small_at(y, x), large = sum_along<LARGE>(sums[0], y, x) * (1.0f / 49.0f);
    off = most(off, most(counted(difference * difference, k.per_point), counted(small * small, k.per_small)));
    off = most(off, counted(large * large, k.per_large));
    const float variance = variance_at(at);
    for (int axis = 0; axis < 2; ++axis) {
        const float power = sum_along<LARGE>(sums[1 + 2 * axis], y, x) * (1.0f / 49.0f);
        const float moment = sum_along<LARGE>(sums[2 + 2 * axis], y, x) * (1.0f / 49.0f);
        const float slope = axis ? gx.at(y, x) : gy.at(y, x);
        off = most(off, seen_moving(slope, power, moment, variance, k.per_motion));
    }
    const Fused f = fused(k.z[at], mean.at(y, x), variance, off, k.emphasis, k.least_gain);
    k.out_mean[at] = f.mean;
    k.out_variance[at] = f.variance;
}

__global__ void ps_fused_noise(const FusedNoise* arguments) {
    constexpr int REACH = 4;
    __shared__ float values[Around<REACH>::WIDE * Around<REACH>::HIGH];
    __shared__ float sums[Around<REACH>::WIDE * TILE_Y];
    const FusedNoise k = *arguments;
    const Tile tile = tile_of(k.width, k.height);
    const Around<REACH> variance = {values};
    Around<REACH>::each([&](int y, int x) { variance.at(y, x) = k.variance[tile.y(y) * k.width + tile.x(x)]; });
    sum_rows<REACH>(sums, [&](int y, int x) { return variance.at(y, x); });
    __syncthreads();
    const int x = threadIdx.x % TILE_X, y = threadIdx.x / TILE_X;
    if (tile.left + x >= k.width || tile.top + y >= k.height) return;
    k.level[(tile.top + y) * k.width + tile.left + x] = square_root(sum_along<REACH>(sums, y, x) * (1.0f / 81.0f));
}

// A thread a block of pixels; ragged ones at the right and lower edge only add to the sum.
__global__ void ps_similarity(const Similarity* arguments) {
    __shared__ float of_warp[WARPS];
    const Similarity k = *arguments;
    const int64_t left = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * k.block, top = (int64_t)blockIdx.y * k.block;
    const bool whole = left + k.block <= k.width && top + k.block <= k.height;
    float cut = 0, sum = 0;
    for (int64_t x = left; x < left + k.block && x < k.width; ++x) {
        float column = 0;
        for (int64_t y = top; y < top + k.block && y < k.height; ++y) {
            const float difference = k.z[y * k.width + x] - k.previous[y * k.width + x];
            const float half = difference * difference * 0.5f;
            column += half;
            cut += least(half, k.cut);
        }
        sum += column;
    }
    float largest = whole ? sum / (float)(k.block * k.block) : 0.0f;
    for (int apart = WARP / 2; apart > 0; apart /= 2) largest = most(largest, __shfl_down_sync(0xffffffffu, largest, apart));
    if (threadIdx.x % WARP == 0) of_warp[threadIdx.x / WARP] = largest;
    const double total = block_sum(cut);  // its barriers make of_warp complete
    if (threadIdx.x != 0) return;
    for (int warp = 1; warp < WARPS; ++warp) largest = most(largest, of_warp[warp]);
    double* part = k.parts + 2 * ((int64_t)blockIdx.y * gridDim.x + blockIdx.x);
    part[0] = total;
    part[1] = largest;
}

__global__ void ps_similarity_finish(Similarity* k) {
    const int64_t blocks = (k->width + k->block - 1) / k->block, rows = (k->height + k->block - 1) / k->block;
    const int64_t parts = (blocks + THREADS - 1) / THREADS * rows;
    const double sum = block_sum_of(k->parts, parts, 2, 0);
    if (threadIdx.x != 0) return;
    float largest = 0;
    for (int64_t i = 0; i < parts; ++i) largest = most(largest, (float)k->parts[2 * i + 1]);
    k->sum_cut = sum;
    k->largest_block = largest;
}

}  // extern "C"
