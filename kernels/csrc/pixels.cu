// Every operation for a GPU, over the same maths headers as loops.cpp: one thread a pixel where pixels do not meet, fixed
// trees of sums where they do (no float atomics: the same frame gives the same bits). A kernel takes one pointer to its
// arguments in device memory, so that a captured graph can be run again with other numbers.
//
// Grids are those of `kernels/grids.py`; the constants below and there must agree.
#include "reduce.cuh"

#include "counts.cuh"
#include "network_input.cuh"
#include "noise_level.cuh"
#include "philox.cuh"
#include "preview.cuh"
#include "sampler_row.cuh"
#include "stabilise.cuh"

using namespace photonstep;

namespace {

constexpr int PIXELS_EACH = 4;  // pixels of a row that a thread takes, a block's width apart: loads that overlap

// Calls work(x) for this thread's pixels of row blockIdx.y.
template <class Work>
__device__ void along_row(int64_t width, const Work& work) {
    const int64_t first = (int64_t)blockIdx.x * PIXELS_EACH * THREADS + threadIdx.x;
#pragma unroll
    for (int i = 0; i < PIXELS_EACH; ++i) {
        const int64_t x = first + (int64_t)i * THREADS;
        if (x < width) work(x);
    }
}

__device__ int64_t thread_index() { return (int64_t)blockIdx.x * THREADS + threadIdx.x; }

template <class Pixel>
__device__ const Pixel* row_of(const void* image, int64_t stride, int64_t y) {
    return reinterpret_cast<const Pixel*>(static_cast<const char*>(image) + y * stride);
}

__device__ float pixel(const void* image, int64_t stride, int32_t type, int64_t y, int64_t x) {
    if (type == UINT8) return (float)row_of<uint8_t>(image, stride, y)[x];
    if (type == UINT16) return (float)row_of<uint16_t>(image, stride, y)[x];
    return row_of<float>(image, stride, y)[x];
}

__device__ void store_plane(const NetworkInput& k, int64_t at, float value) {
    if (k.plane_type == PLANE_FLOAT32) static_cast<float*>(k.plane)[at] = value;
    else static_cast<uint16_t*>(k.plane)[at] = k.plane_type == PLANE_FLOAT16 ? half_bits(value) : bfloat16_bits(value);
}

__device__ float column_sum(const BlockMeans& k, int64_t y, int64_t x) {
    float sum = 0;
    for (int64_t r = 0; r < k.block; ++r) {
        const float value = pixel(k.image, k.image_stride, k.pixel_type, y + r, x);
        sum += k.scale_map ? value * k.scale_map[(y + r) * k.width + x] + k.bias_map[(y + r) * k.width + x] : value;
    }
    return sum;
}

__device__ float residual_at(const Residual& k, int64_t y, int64_t x) {
    const float z = k.z[y * k.width + x], u = row_of<float>(k.u, k.u_stride, y)[x];
    const float difference = z - from_model(u, k.span, k.centre);
    return k.noise_map ? difference / k.noise_map[y * k.width + x] : difference * k.per_noise;
}

__device__ uint32_t frame_bits(const Content& k, int64_t y, int64_t x) {
    if (k.pixel_type == UINT8) return bits_of_pixel(row_of<uint8_t>(k.frame, k.frame_stride, y)[x]);
    if (k.pixel_type == UINT16) return bits_of_pixel(row_of<uint16_t>(k.frame, k.frame_stride, y)[x]);
    return bits_of_pixel(row_of<float>(k.frame, k.frame_stride, y)[x]);
}

}  // namespace

extern "C" {

__global__ void ps_stabilise(const Stabilise* arguments) {
    const Stabilise k = *arguments;
    const int64_t y = blockIdx.y;
    along_row(k.width, [&](int64_t x) {
        const int64_t at = y * k.width + x;
        const float counts = pixel(k.frame, k.frame_stride, k.pixel_type, y, x);
        k.z[at] = stabilised(counts, k.scale_map ? k.scale_map[at] : k.scale, k.bias_map ? k.bias_map[at] : k.bias);
    });
}

__global__ void ps_network_input(const NetworkInput* arguments) {
    const NetworkInput k = *arguments;
    const int64_t y = blockIdx.y;
    along_row(k.width, [&](int64_t x) {
        const int64_t at = y * k.width + x;
        const float u = to_model(k.z[at], k.per_span, k.shift);
        if (k.state) k.state[at] = u;
        if (k.plane) store_plane(k, k.factor == 1 ? at : unshuffled(y, x, k.height, k.width, k.factor), k.c_in * u);
    });
}

__global__ void ps_sampler_row(const SamplerRow* arguments) {
    const SamplerRow k = *arguments;
    const int64_t y = blockIdx.y;
    const Edm whole = edm(k.sigma, k.sigma_data);
    const float next_c_in = edm(k.sigma_next, k.sigma_data).c_in;
    along_row(k.width, [&](int64_t x) {
        const int64_t at = y * k.width + x;
        const float level = k.sigma_map ? k.sigma_map[at] : 1.0f;
        float next = k.x[at];
        if (k.network) {
            const Edm c = k.sigma_map ? edm(k.sigma * level, k.sigma_data) : whole;
            const float x0 = x0_hat(next, k.network[at], c.c_skip, c.c_out);
            next = k.a != 0 ? k.b * x0 + k.a * next : k.b * x0;
            if (k.p != 0) next += k.p * k.x0_before[at];
            if (k.y != 0) next += k.y * k.measurement[at];
            if (k.n != 0) {
                const uint32_t line = k.origin_y + (uint32_t)y, place = k.origin_x + (uint32_t)x;
                const float drawn = normal_at(line, place, k.row, k.key_low, k.key_high);
                next += k.n * (k.sigma_map ? level * drawn : drawn);
            }
            k.next[at] = next;
            if (k.x0) k.x0[at] = x0;
        }
        if (k.plane) k.plane[at] = (k.sigma_map ? edm(k.sigma_next * level, k.sigma_data).c_in : next_c_in) * next;
        if (k.plane && k.condition) k.condition[at] = noise_condition(k.sigma_map ? k.sigma_next * level : k.sigma_next, k.sigma_min);
    });
}

__global__ void ps_normal(const Normal* arguments) {
    const Normal k = *arguments;
    const int64_t y = blockIdx.y;
    along_row(k.width, [&](int64_t x) {
        k.noise[y * k.width + x] =
            normal_at(k.origin_y + (uint32_t)y, k.origin_x + (uint32_t)x, k.row, k.key_low, k.key_high);
    });
}

__global__ void ps_electrons(const Electrons* arguments) {
    const Electrons k = *arguments;
    const int64_t y = blockIdx.y;
    const float* u = row_of<float>(k.u, k.u_stride, y);
    along_row(k.width, [&](int64_t x) {
        const int64_t at = y * k.width + x;
        const float z = from_model(u[x], k.span, k.centre), constant = k.constant_map ? k.constant_map[at] : k.constant;
        k.electrons[at] = k.unbiased ? unbiased_inverse(z, constant) : algebraic_inverse(z, constant);
    });
}

__global__ void ps_counts(const Counts* arguments) {
    const Counts k = *arguments;
    const int64_t y = blockIdx.y;
    char* out = static_cast<char*>(k.counts) + y * k.counts_stride;
    float light = 0;
    along_row(k.width, [&](int64_t x) {
        const int64_t at = y * k.width + x;
        const float electrons = balanced(k.electrons[at], k.gain, k.shift);
        const float value = to_adu(electrons, k.per_gain_map ? k.per_gain_map[at] : k.per_gain,
                                   k.offset_map ? k.offset_map[at] : k.offset);
        if (k.pixel_type == UINT8) reinterpret_cast<uint8_t*>(out)[x] = as_pixel(value, uint8_t());
        else if (k.pixel_type == UINT16) reinterpret_cast<uint16_t*>(out)[x] = as_pixel(value, uint16_t());
        else reinterpret_cast<float*>(out)[x] = value;
        light += electrons;
    });
    const double sum = block_sum(light);
    if (threadIdx.x == 0) k.parts[(int64_t)blockIdx.y * gridDim.x + blockIdx.x] = sum;
}

__global__ void ps_counts_finish(Counts* k) {
    const int64_t across = (k->width + PIXELS_EACH * THREADS - 1) / (PIXELS_EACH * THREADS);
    const double light = block_sum_of(k->parts, across * k->height, 1, 0);
    if (threadIdx.x == 0) k->light = light;
}

__global__ void ps_block_means(const BlockMeans* arguments) {
    const BlockMeans k = *arguments;
    const int64_t blocks = k.width / k.block, bx = thread_index(), by = blockIdx.y;
    if (bx >= blocks) return;
    float sum = 0;
    for (int64_t i = 0; i < k.block; ++i) sum += column_sum(k, by * k.block, bx * k.block + i);  // the CPU's order
    const float share = 1.0f / (float)(k.block * k.block);
    k.means[by * blocks + bx] = k.scale_map ? sum * share : sum * share * k.scale + k.bias;
}

__global__ void ps_residual(const Residual* arguments) {
    const Residual k = *arguments;
    const int64_t x = thread_index(), top = (int64_t)blockIdx.y * k.step * k.band;
    const int64_t bottom = top + k.band < k.height ? top + k.band : k.height;
    float squares = 0, along_y = 0, along_x = 0, dark = 0, above = 0;
    if (x < k.width) {
        for (int64_t y = top; y < bottom; ++y) {
            const float now = residual_at(k, y, x);
            squares += now * now;
            if (y > top) along_y += now * above;
            if (x + 1 < k.width) along_x += now * residual_at(k, y, x + 1);
            dark += k.z[y * k.width + x] <= 0.0f ? 1.0f : 0.0f;
            above = now;
        }
    }
    double* part = k.parts + 4 * ((int64_t)blockIdx.y * gridDim.x + blockIdx.x);
    const double sums[4] = {block_sum(squares), block_sum(along_y), block_sum(along_x), block_sum(dark)};
    if (threadIdx.x == 0)
        for (int i = 0; i < 4; ++i) part[i] = sums[i];
}

__global__ void ps_residual_finish(Residual* k) {
    const int64_t bands = (k->height + k->band * k->step - 1) / (k->band * k->step);
    const int64_t parts = (k->width + THREADS - 1) / THREADS * bands;
    double sums[4];
    for (int i = 0; i < 4; ++i) sums[i] = block_sum_of(k->parts, parts, 4, i);
    if (threadIdx.x != 0) return;
    int64_t rows = 0;
    for (int64_t band = 0; band < bands; ++band) {
        const int64_t left = k->height - band * k->step * k->band;
        rows += left < k->band ? left : k->band;
    }
    k->squares = sums[0];
    k->along_y = sums[1];
    k->along_x = sums[2];
    k->cut_off = (int64_t)sums[3];
    k->pixels = rows * k->width;
    k->pairs_y = (rows - bands) * k->width;
    k->pairs_x = rows * (k->width - 1);
}

__global__ void ps_laplacian(const Laplacian* arguments) {
    const Laplacian k = *arguments;
    const int64_t y = blockIdx.y, inner = k.width - 2;
    const float* r0 = row_of<float>(k.image, k.image_stride, y);
    const float* r1 = row_of<float>(k.image, k.image_stride, y + 1);
    const float* r2 = row_of<float>(k.image, k.image_stride, y + 2);
    along_row(inner, [&](int64_t x) {
        float across[3];
        for (int i = 0; i < 3; ++i) across[i] = second_difference(r0[x + i], r1[x + i], r2[x + i]);
        k.magnitude[y * inner + x] = magnitude(second_difference(across[0], across[1], across[2]));
    });
}

__global__ void ps_preview(const Preview* arguments) {
    const Preview k = *arguments;
    const int64_t y = blockIdx.y;
    along_row(k.width, [&](int64_t x) {
        const uint8_t shown = grey(pixel(k.image, k.image_stride, k.pixel_type, y, x), k.low, k.per_range);
        k.grey[y * k.width + x] = k.lut ? k.lut[shown] : shown;
    });
}

__global__ void ps_content(Content* arguments) {
    const Content k = *arguments;
    const int64_t y = blockIdx.y;
    uint32_t low = 0, high = 0, full = 0;
    along_row(k.width, [&](int64_t x) {
        if (k.hashed) {
            const uint32_t value = frame_bits(k, y, x), index = (uint32_t)(y * k.width) + (uint32_t)x;
            low += content_low(value, index);
            high += content_high(value, index);
        }
        full += pixel(k.frame, k.frame_stride, k.pixel_type, y, x) >= k.full;
    });
    add_over_block(low, &arguments->low);
    add_over_block(high, &arguments->high);
    add_over_block(full, &arguments->full_pixels);
}

__global__ void ps_window(const Window* arguments) {
    const Window k = *arguments;
    const int64_t y = blockIdx.y, seen = k.top + y;
    const float* from = row_of<float>(k.from, k.from_stride, seen < k.from_height ? seen : 2 * k.from_height - 1 - seen);
    float* to = reinterpret_cast<float*>(reinterpret_cast<char*>(k.to) + y * k.to_stride);
    along_row(k.width, [&](int64_t x) {
        const int64_t at = k.left + x;
        to[x] = from[at < k.from_width ? at : 2 * k.from_width - 1 - at];
    });
}

__global__ void ps_fill(const Fill* k) {
    along_row(k->count, [&](int64_t i) { k->to[i] = k->value; });
}

__global__ void ps_full_pixels(FullPixels* arguments) {
    const FullPixels k = *arguments;
    const int64_t bx = thread_index(), by = blockIdx.y;
    uint32_t found = 0;
    for (int64_t y = by * k.block; y < (by + 1) * k.block && y < k.height; ++y)
        for (int64_t x = bx * k.block; x < (bx + 1) * k.block && x < k.width; ++x)
            found += pixel(k.frame, k.frame_stride, k.pixel_type, y, x) >= k.full;
    const int64_t blocks = k.width / k.block;
    if (bx < blocks && by < k.height / k.block) k.blocks[by * blocks + bx] = (float)found;
    add_over_block(found, &arguments->total);
}

}  // extern "C"
