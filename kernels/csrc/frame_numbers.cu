// Numbers about a whole frame, made and used on the GPU: order statistics, the model's range, the photon balance. The host
// reads none of them before the frame is done.
#include "reduce.cuh"

#include "sampler_row.cuh"

using namespace photonstep;

namespace {

// Order statistics by three passes over 11, 11 and 10 bits of the sortable key, as on the CPU. Scratch: three histograms
// for each of eight ranks, then the prefix that each rank has, then where it stands among the keys with that prefix.
constexpr int BINS = 2048, RANKS = 8, BINS_EACH = BINS / THREADS;

__device__ uint32_t* histogram_of(const OrderStatistics& k, int pass, int rank) {
    return k.scratch + ((int64_t)pass * RANKS + rank) * BINS;
}
__device__ uint32_t* prefix_of(const OrderStatistics& k) { return k.scratch + 3 * RANKS * BINS; }
__device__ uint32_t* place_of(const OrderStatistics& k) { return prefix_of(k) + RANKS; }
__device__ int shift_of(int pass) { return pass == 0 ? 21 : pass == 1 ? 10 : 0; }
__device__ int bins_of(int pass) { return pass == 2 ? BINS / 2 : BINS; }

// Counts the keys that share rank blockIdx.y's prefix by their next digit; the first pass serves all ranks.
__device__ void order_count(const OrderStatistics& k, int pass, uint32_t* bins) {
    for (int i = threadIdx.x; i < BINS; i += THREADS) bins[i] = 0;
    __syncthreads();
    const int rank = blockIdx.y, shift = shift_of(pass);
    const uint32_t prefix = pass ? prefix_of(k)[rank] : 0, mask = bins_of(pass) - 1;
    const int above = shift + (pass == 2 ? 10 : 11);  // bits above the digit; in the first pass there are none
    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < k.count; i += (int64_t)gridDim.x * THREADS) {
        const uint32_t key = sortable(k.values[i]);
        if (pass == 0 || key >> above == prefix) atomicAdd(bins + ((key >> shift) & mask), 1u);
    }
    __syncthreads();
    uint32_t* histogram = histogram_of(k, pass, rank);
    for (int i = threadIdx.x; i < BINS; i += THREADS)
        if (bins[i]) atomicAdd(histogram + i, bins[i]);
}

// Finds the digit of rank blockIdx.x: the bin in which its place falls.
__device__ void order_pick(OrderStatistics* k, int pass, uint32_t* up_to) {
    const int rank = blockIdx.x;
    const uint32_t* histogram = histogram_of(*k, pass, pass ? rank : 0);
    const uint32_t place = pass ? place_of(*k)[rank] : (uint32_t)k->rank[rank];
    const uint32_t prefix = pass ? prefix_of(*k)[rank] : 0;
    uint32_t mine = 0;
    for (int i = 0; i < BINS_EACH; ++i) mine += histogram[threadIdx.x * BINS_EACH + i];
    up_to[threadIdx.x] = mine;
    __syncthreads();
    for (int apart = 1; apart < THREADS; apart *= 2) {
        const uint32_t before = (int)threadIdx.x >= apart ? up_to[threadIdx.x - apart] : 0;
        __syncthreads();
        up_to[threadIdx.x] += before;
        __syncthreads();
    }
    const uint32_t end = up_to[threadIdx.x];
    uint32_t start = end - mine;
    if (place < start || place >= end) return;  // exactly one thread goes on
    int digit = threadIdx.x * BINS_EACH;
    while (place >= start + histogram[digit]) start += histogram[digit++];
    const uint32_t longer = pass == 0 ? digit : (prefix << (pass == 2 ? 10 : 11)) | (uint32_t)digit;
    prefix_of(*k)[rank] = longer;
    place_of(*k)[rank] = place - start;
    if (pass == 2) k->value[rank] = from_sortable(longer);
}

__device__ double above_zero(double value, double least) { return value > least ? value : least; }

}  // namespace

extern "C" {

__global__ void ps_order_clear(const OrderStatistics* k) {
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < 3 * RANKS * BINS + 2 * RANKS) k->scratch[i] = 0;
}

#define PS_ORDER_PASS(pass)                                                   \
    __global__ void ps_order_count_##pass(const OrderStatistics* k) {         \
        __shared__ uint32_t bins[BINS];                                       \
        order_count(*k, pass, bins);                                          \
    }                                                                         \
    __global__ void ps_order_pick_##pass(OrderStatistics* k) {                \
        __shared__ uint32_t up_to[THREADS];                                   \
        order_pick(k, pass, up_to);                                           \
    }
PS_ORDER_PASS(0)
PS_ORDER_PASS(1)
PS_ORDER_PASS(2)
#undef PS_ORDER_PASS

__global__ void ps_range(Range* k) {
    __shared__ double shared[3];  // span, centre, scale
    if (threadIdx.x == 0) {
        double level[2];
        for (int i = 0; i < 2; ++i) {
            const double low = k->statistics->value[2 * i], high = k->statistics->value[2 * i + 1];
            level[i] = low + (high - low) * k->fraction[i];
        }
        if (k->has_before) {
            const double allowed = k->new_scene * above_zero(k->before[1] - k->before[0], k->minimum_range);
            const double low = level[0] - k->before[0], high = level[1] - k->before[1];
            if (low < allowed && -low < allowed && high < allowed && -high < allowed)
                for (int i = 0; i < 2; ++i) level[i] = k->memory * k->before[i] + (1 - k->memory) * level[i];
        }
        k->level[0] = level[0];
        k->level[1] = level[1];
        shared[0] = k->span = above_zero(level[1] - level[0], k->minimum_range) / (k->high_u - k->low_u);
        shared[1] = k->centre = level[0] - k->low_u * k->span;
        shared[2] = k->scale = sqrt(1 / (k->span * k->span) + k->degradation * k->degradation);
    }
    __syncthreads();
    const double span = shared[0], centre = shared[1], scale = shared[2];
    // the first row's level, before the rows are scaled below
    const float first = k->rows ? (float)(k->row[0].sigma * scale) : 1.0f;
    __syncthreads();
    const float c_in = edm(first, k->sigma_data).c_in, told = noise_condition(first, k->sigma_min);
    for (int i = threadIdx.x; i < k->inputs; i += THREADS) {
        k->input[i].per_span = (float)(1 / span);
        k->input[i].shift = (float)(centre / span);
        k->input[i].c_in = c_in;
    }
    for (int i = threadIdx.x; i < k->conditions; i += THREADS) k->condition[i].value = told;
    for (int i = threadIdx.x; i < k->rows; i += THREADS) {
        SamplerRow& row = k->row[i];
        row.sigma = (float)(row.sigma * scale);
        row.sigma_next = (float)(row.sigma_next * scale);
        row.n = (float)(row.n * scale);
    }
    if (threadIdx.x != 0) return;
    k->electrons->span = k->residual->span = (float)span;
    k->electrons->centre = k->residual->centre = (float)centre;
}

// Sums of the normal equations of weighted least squares for (gain - 1, shift).
__global__ void ps_balance(const Balance* k) {
    double sums[5] = {0, 0, 0, 0, 0};
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < k->count && !(k->full && k->full[i] != 0)) {
        const double restored = k->restored[i], missing = (double)k->measured[i] - restored;
        const double weight = k->weight / (above_zero(restored, 0.05) + k->readout_variance);
        sums[0] = weight * restored * restored;
        sums[1] = weight * restored;
        sums[2] = weight;
        sums[3] = weight * restored * missing;
        sums[4] = weight * missing;
    }
    for (int n = 0; n < 5; ++n) {
        const double sum = block_sum(sums[n]);
        if (threadIdx.x == 0) k->parts[5 * (int64_t)blockIdx.x + n] = sum;
    }
}

__global__ void ps_balance_finish(Balance* k) {
    const int64_t parts = (k->count + THREADS - 1) / THREADS;
    double sums[5];
    for (int n = 0; n < 5; ++n) sums[n] = block_sum_of(k->parts, parts, 5, n);
    if (threadIdx.x != 0) return;
    const double a = sums[0] + 1 / (k->prior_gain * k->prior_gain), b = sums[1];
    const double c = sums[2] + 1 / (k->prior_shift * k->prior_shift), p = sums[3], q = sums[4];
    double change = (c * p - b * q) / (a * c - b * b);
    change = change > k->largest_change ? k->largest_change : change < -k->largest_change ? -k->largest_change : change;
    k->gain = 1 + change;
    k->shift = (q - b * change) / c;
    k->counts->gain = (float)k->gain;
    k->counts->shift = (float)k->shift;
}

}  // extern "C"
