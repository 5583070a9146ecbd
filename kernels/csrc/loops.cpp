// The loops over rows. No standard library here: an inline function of it, compiled for AVX-512, could be the one that the
// linker keeps for everybody.
#include "loops.hpp"

#include "counts.cuh"
#include "lanes.hpp"
#include "network_input.cuh"
#include "noise_level.cuh"
#include "philox.cuh"
#include "preview.cuh"
#include "sampler_row.cuh"
#include "stabilise.cuh"

#ifndef PS_VARIANT
#define PS_VARIANT baseline
#endif
#define PS_JOIN_(a, b) a##b
#define PS_JOIN(a, b) PS_JOIN_(a, b)

namespace photonstep {
namespace {

constexpr int64_t SPAN = 1024;  // pixels of a row that are worked on at a time, so that scratch stays in the first cache

template <class T>
const T* row_of(const void* image, int64_t stride, int64_t y) {
    return reinterpret_cast<const T*>(static_cast<const char*>(image) + y * stride);
}

// --- stabilise

template <class Pixel>
void stabilise_row(const Stabilise& k, int64_t y) {
    const Pixel* __restrict frame = row_of<Pixel>(k.frame, k.frame_stride, y);
    float* __restrict z = k.z + y * k.width;
    const int64_t width = k.width;
    if (k.scale_map) {
        const float* __restrict scale = k.scale_map + y * width;
        const float* __restrict bias = k.bias_map + y * width;
        for (int64_t x = 0; x < width; ++x) z[x] = stabilised((float)frame[x], scale[x], bias[x]);
    } else {
        const float scale = k.scale, bias = k.bias;
        for (int64_t x = 0; x < width; ++x) z[x] = stabilised((float)frame[x], scale, bias);
    }
}

void stabilise_rows(const Stabilise& k, int64_t first, int64_t last) {
    for (int64_t y = first; y < last; ++y) {
        if (k.pixel_type == UINT8) stabilise_row<uint8_t>(k, y);
        else if (k.pixel_type == UINT16) stabilise_row<uint16_t>(k, y);
        else stabilise_row<float>(k, y);
    }
}

// --- network input

template <int TYPE>
void store_plane(const NetworkInput& k, int64_t y, const float* __restrict u) {
    const int64_t width = k.width, factor = k.factor;
    const float c_in = k.c_in;
    for (int64_t phase = 0; phase < factor; ++phase) {
        const int64_t begin = unshuffled(y, phase, k.height, width, factor), count = (width - phase + factor - 1) / factor;
        if (TYPE == PLANE_FLOAT32) {
            float* __restrict plane = static_cast<float*>(k.plane) + begin;
            if (factor == 1) for (int64_t i = 0; i < count; ++i) plane[i] = c_in * u[i];
            else for (int64_t i = 0; i < count; ++i) plane[i] = c_in * u[phase + i * factor];
        } else {
            uint16_t* __restrict plane = static_cast<uint16_t*>(k.plane) + begin;
            for (int64_t i = 0; i < count; ++i) {
                const float value = c_in * u[phase + i * factor];
                plane[i] = TYPE == PLANE_FLOAT16 ? half_bits(value) : bfloat16_bits(value);
            }
        }
    }
}

void network_input_rows(const NetworkInput& k, int64_t first, int64_t last) {
    const float per_span = k.per_span, shift = k.shift;
    const int64_t width = k.width;
    for (int64_t y = first; y < last; ++y) {
        const float* __restrict z = k.z + y * width;
        if (k.state && k.plane && k.factor == 1 && k.plane_type == PLANE_FLOAT32) {
            float* __restrict state = k.state + y * width;
            float* __restrict plane = static_cast<float*>(k.plane) + y * width;
            const float c_in = k.c_in;
            for (int64_t x = 0; x < width; ++x) {
                const float u = to_model(z[x], per_span, shift);
                state[x] = u;
                plane[x] = c_in * u;
            }
            continue;
        }
        float scratch[SPAN];  // a span is a multiple of every factor that divides it; other factors take the row's state
        const bool whole = k.state != nullptr;
        float* state = whole ? k.state + y * width : scratch;
        if (whole || width <= SPAN) {
            for (int64_t x = 0; x < width; ++x) state[x] = to_model(z[x], per_span, shift);
            if (!k.plane) continue;
            if (k.plane_type == PLANE_FLOAT32) store_plane<PLANE_FLOAT32>(k, y, state);
            else if (k.plane_type == PLANE_FLOAT16) store_plane<PLANE_FLOAT16>(k, y, state);
            else store_plane<PLANE_BFLOAT16>(k, y, state);
            continue;
        }
        for (int64_t x = 0; x < width; ++x) {
            const float value = k.c_in * to_model(z[x], per_span, shift);
            const int64_t at = unshuffled(y, x, k.height, width, k.factor);
            if (k.plane_type == PLANE_FLOAT32) static_cast<float*>(k.plane)[at] = value;
            else static_cast<uint16_t*>(k.plane)[at] = k.plane_type == PLANE_FLOAT16 ? half_bits(value) : bfloat16_bits(value);
        }
    }
}

// --- noise

// Fills normals for the pixels x to x + count of line y; whole groups of four are made, the ragged ends are cut off.
void normal_span(const Normal& k, int64_t y, int64_t begin, int64_t count, float* __restrict out) {
    constexpr int64_t GROUPS = SPAN / 4 + 1;
    uint32_t word[4][GROUPS];
    float normal[4][GROUPS];
    const uint32_t x0 = k.origin_x + (uint32_t)begin, line = k.origin_y + (uint32_t)y;
    const uint32_t group = x0 >> 2;
    const int64_t groups = (int64_t)((x0 + (uint32_t)count + 3) >> 2) - group, lead = x0 & 3u;
    const uint32_t row = k.row, k0 = k.key_low, k1 = k.key_high;
    for (int64_t g = 0; g < groups; ++g) {
        const Words w = philox(group + (uint32_t)g, line, row, 0u, k0, k1);
        word[0][g] = w.w[0];
        word[1][g] = w.w[1];
        word[2][g] = w.w[2];
        word[3][g] = w.w[3];
    }
    for (int pair = 0; pair < 4; pair += 2)
        for (int64_t g = 0; g < groups; ++g) box_muller(word[pair][g], word[pair + 1][g], &normal[pair][g], &normal[pair + 1][g]);
    if (lead == 0 && (count & 3) == 0) {
        for (int64_t g = 0; g < groups; ++g)
            for (int i = 0; i < 4; ++i) out[4 * g + i] = normal[i][g];
        return;
    }
    for (int64_t i = 0; i < count; ++i) out[i] = normal[(lead + i) & 3][(lead + i) >> 2];
}

void normal_rows(const Normal& k, int64_t first, int64_t last) {
    for (int64_t y = first; y < last; ++y)
        for (int64_t x = 0; x < k.width; x += SPAN)
            normal_span(k, y, x, k.width - x < SPAN ? k.width - x : SPAN, k.noise + y * k.width + x);
}

// --- sampler row

// x0_hat of a span of a row; the coefficients vary where there is a sigma map
void x0_span(const SamplerRow& k, int64_t at, int64_t count, float* __restrict x0) {
    const float* __restrict x = k.x + at;
    const float* __restrict network = k.network + at;
    if (k.sigma_map) {
        const float* __restrict map = k.sigma_map + at;
        const float sigma = k.sigma, sigma_data = k.sigma_data;
        for (int64_t i = 0; i < count; ++i) {
            const Edm c = edm(sigma * map[i], sigma_data);
            x0[i] = x0_hat(x[i], network[i], c.c_skip, c.c_out);
        }
    } else {
        const Edm c = edm(k.sigma, k.sigma_data);
        for (int64_t i = 0; i < count; ++i) x0[i] = x0_hat(x[i], network[i], c.c_skip, c.c_out);
    }
}

void next_inputs(const SamplerRow& k, const float* __restrict next, int64_t at, int64_t count) {
    float* __restrict plane = k.plane + at;
    const float sigma = k.sigma_next, sigma_data = k.sigma_data, sigma_min = k.sigma_min;
    if (!k.sigma_map) {
        const float c_in = edm(sigma, sigma_data).c_in;
        for (int64_t i = 0; i < count; ++i) plane[i] = c_in * next[i];
        if (!k.condition) return;
        const float told = noise_condition(sigma, sigma_min);
        for (int64_t i = 0; i < count; ++i) k.condition[at + i] = told;
        return;
    }
    const float* __restrict map = k.sigma_map + at;
    for (int64_t i = 0; i < count; ++i) plane[i] = edm(sigma * map[i], sigma_data).c_in * next[i];
    if (!k.condition) return;
    float* __restrict condition = k.condition + at;
    for (int64_t i = 0; i < count; ++i) condition[i] = noise_condition(sigma * map[i], sigma_min);
}

void sampler_row_span(const SamplerRow& k, int64_t y, int64_t begin, int64_t count) {
    const int64_t at = y * k.width + begin;
    if (!k.network) {
        next_inputs(k, k.x + at, at, count);
        return;
    }
    float scratch[SPAN], noise[SPAN];
    // x0 may take the place of an array that is read below
    const bool apart = k.x0 && k.x0 != k.x && k.x0 != k.x0_before && k.x0 != k.measurement;
    float* __restrict x0 = apart ? k.x0 + at : scratch;
    x0_span(k, at, count, x0);
    const float *x = k.x + at, *before = k.p != 0 ? k.x0_before + at : nullptr, *seen = k.y != 0 ? k.measurement + at : nullptr;
    float* next = k.next + at;  // may be x itself
    const float a = k.a, b = k.b;
    if (a != 0) for (int64_t i = 0; i < count; ++i) next[i] = b * x0[i] + a * x[i];
    else for (int64_t i = 0; i < count; ++i) next[i] = b * x0[i];
    if (before) for (int64_t i = 0; i < count; ++i) next[i] += k.p * before[i];
    if (seen) for (int64_t i = 0; i < count; ++i) next[i] += k.y * seen[i];
    if (k.n != 0) {
        const Normal source = {k.height, k.width, k.row, k.key_low, k.key_high, k.origin_y, k.origin_x, nullptr};
        normal_span(source, y, begin, count, noise);
        if (k.sigma_map) for (int64_t i = 0; i < count; ++i) next[i] += k.n * (k.sigma_map[at + i] * noise[i]);
        else for (int64_t i = 0; i < count; ++i) next[i] += k.n * noise[i];
    }
    if (k.x0 && !apart) for (int64_t i = 0; i < count; ++i) k.x0[at + i] = x0[i];
    if (k.plane) next_inputs(k, next, at, count);
}

void sampler_row_rows(const SamplerRow& k, int64_t first, int64_t last) {
    for (int64_t y = first; y < last; ++y)
        for (int64_t x = 0; x < k.width; x += SPAN) sampler_row_span(k, y, x, k.width - x < SPAN ? k.width - x : SPAN);
}

// --- electrons, counts

void electrons_rows(const Electrons& k, int64_t first, int64_t last) {
    const float span = k.span, centre = k.centre, constant = k.constant;
    for (int64_t y = first; y < last; ++y) {
        const float* __restrict u = row_of<float>(k.u, k.u_stride, y);
        const float* __restrict map = k.constant_map ? k.constant_map + y * k.width : nullptr;
        float* __restrict e = k.electrons + y * k.width;
        if (k.unbiased)
            for (int64_t x = 0; x < k.width; ++x)
                e[x] = unbiased_inverse(from_model(u[x], span, centre), map ? map[x] : constant);
        else if (map)
            for (int64_t x = 0; x < k.width; ++x) e[x] = algebraic_inverse(from_model(u[x], span, centre), map[x]);
        else
            for (int64_t x = 0; x < k.width; ++x) e[x] = algebraic_inverse(from_model(u[x], span, centre), constant);
    }
}

template <class Pixel>
float counts_span(const Counts& k, int64_t y, int64_t begin, int64_t count) {
    const int64_t at = y * k.width + begin;
    const float* __restrict electrons = k.electrons + at;
    Pixel* __restrict out = const_cast<Pixel*>(row_of<Pixel>(k.counts, k.counts_stride, y)) + begin;
    const float gain = k.gain, shift = k.shift;
    const float* __restrict per_gain_map = k.per_gain_map ? k.per_gain_map + at : nullptr;
    const float* __restrict offset_map = k.offset_map ? k.offset_map + at : nullptr;
    float light[SPAN];
    for (int64_t i = 0; i < count; ++i) light[i] = balanced(electrons[i], gain, shift);
    if (per_gain_map) {
        for (int64_t i = 0; i < count; ++i) {
            const float value = to_adu(light[i], per_gain_map[i], offset_map[i]);
            out[i] = as_pixel(value, Pixel());
        }
    } else {
        const float per_gain = k.per_gain, offset = k.offset;
        for (int64_t i = 0; i < count; ++i) {
            const float value = to_adu(light[i], per_gain, offset);
            out[i] = as_pixel(value, Pixel());
        }
    }
    Lanes lanes = {};
    const int64_t even = count & ~15;
    for (int64_t i = 0; i < even; i += 16) lanes += lanes_at(light + i);
    float sum = sum_of(lanes);
    for (int64_t i = even; i < count; ++i) sum += light[i];
    return sum;
}

void counts_rows(const Counts& k, int64_t first, int64_t last, double* light) {
    double sum = 0;
    for (int64_t y = first; y < last; ++y)
        for (int64_t x = 0; x < k.width; x += SPAN) {
            const int64_t count = k.width - x < SPAN ? k.width - x : SPAN;
            if (k.pixel_type == UINT8) sum += counts_span<uint8_t>(k, y, x, count);
            else if (k.pixel_type == UINT16) sum += counts_span<uint16_t>(k, y, x, count);
            else sum += counts_span<float>(k, y, x, count);
        }
    *light = sum;
}

// --- blocks: first and last count rows of blocks

// Sums of `block` neighbours; a block known to the compiler becomes shuffles instead of a loop.
template <int BLOCK>
void sum_neighbours(const float* __restrict column, float* __restrict sums, int64_t blocks, int64_t block) {
    const int64_t width = BLOCK ? BLOCK : block;
    for (int64_t b = 0; b < blocks; ++b) {
        float sum = column[b * width];
        for (int64_t i = 1; i < width; ++i) sum += column[b * width + i];
        sums[b] = sum;
    }
}

template <class Pixel>
void block_row(const BlockMeans& k, int64_t by) {
    const int64_t block = k.block, blocks = k.width / block;
    const float share = 1.0f / (float)(block * block);
    float column[SPAN];
    const int64_t span = SPAN / block;  // blocks at a time; a block is at most SPAN wide
    for (int64_t b0 = 0; b0 < blocks; b0 += span) {
        const int64_t here = blocks - b0 < span ? blocks - b0 : span, count = here * block, x0 = b0 * block;
        for (int64_t r = 0; r < block; ++r) {
            const int64_t y = by * block + r;
            const Pixel* __restrict image = row_of<Pixel>(k.image, k.image_stride, y) + x0;
            if (r == 0) for (int64_t i = 0; i < count; ++i) column[i] = 0;
            if (k.scale_map) {
                const float* __restrict scale = k.scale_map + y * k.width + x0;
                const float* __restrict bias = k.bias_map + y * k.width + x0;
                for (int64_t i = 0; i < count; ++i) column[i] += (float)image[i] * scale[i] + bias[i];
            } else {
                for (int64_t i = 0; i < count; ++i) column[i] += (float)image[i];
            }
        }
        float* __restrict means = k.means + by * blocks + b0;
        if (block == 4) sum_neighbours<4>(column, means, here, block);
        else if (block == 8) sum_neighbours<8>(column, means, here, block);
        else sum_neighbours<0>(column, means, here, block);
        const float scale = k.scale_map ? share : share * k.scale, bias = k.scale_map ? 0.0f : k.bias;
        for (int64_t b = 0; b < here; ++b) means[b] = means[b] * scale + bias;
    }
}

void block_means_rows(const BlockMeans& k, int64_t first, int64_t last) {
    for (int64_t by = first; by < last; ++by) {
        if (k.pixel_type == UINT8) block_row<uint8_t>(k, by);
        else if (k.pixel_type == UINT16) block_row<uint16_t>(k, by);
        else block_row<float>(k, by);
    }
}

// --- residual: first and last count bands

struct Sums {
    float squares, along_y, along_x;
};

// One row of a band: r into `now`, products with itself, its right neighbours and the row above (null for the first).
// `ahead` is 1 where a pixel follows the count ones, so that the last of them has its neighbour too.
Sums residual_row(const Residual& k, int64_t y, int64_t begin, int64_t count, int64_t ahead, float* __restrict now,
                  const float* __restrict above, int64_t* cut_off) {
    const float* __restrict z = k.z + y * k.width + begin;
    const float* __restrict u = row_of<float>(k.u, k.u_stride, y) + begin;
    const float span = k.span, centre = k.centre, per_noise = k.per_noise;
    int32_t dark = 0;
    if (k.noise_map) {
        const float* __restrict noise = k.noise_map + y * k.width + begin;
        for (int64_t i = 0; i < count + ahead; ++i) now[i] = (z[i] - from_model(u[i], span, centre)) / noise[i];
    } else {
        for (int64_t i = 0; i < count + ahead; ++i) now[i] = (z[i] - from_model(u[i], span, centre)) * per_noise;
    }
    for (int64_t i = 0; i < count; ++i) dark += z[i] <= 0.0f;
    *cut_off += dark;
    Lanes squares = {}, along_x = {}, along_y = {};
    const int64_t even = (count + ahead - 1) & ~15;
    for (int64_t i = 0; i < even; i += 16) {
        const Lanes here = lanes_at(now + i);
        squares += here * here;
        along_x += here * lanes_at(now + i + 1);
    }
    if (above)
        for (int64_t i = 0; i < even; i += 16) along_y += lanes_at(now + i) * lanes_at(above + i);
    Sums sums = {sum_of(squares), above ? sum_of(along_y) : 0, sum_of(along_x)};
    for (int64_t i = even; i < count; ++i) {
        sums.squares += now[i] * now[i];
        if (i + 1 < count + ahead) sums.along_x += now[i] * now[i + 1];
        if (above) sums.along_y += now[i] * above[i];
    }
    return sums;
}

void residual_rows(const Residual& k, int64_t first, int64_t last, Residual* sums) {
    float lines[2][SPAN + 1] = {};
    for (int64_t band = first; band < last; ++band) {
        const int64_t top = band * k.step * k.band;
        const int64_t bottom = top + k.band < k.height ? top + k.band : k.height;
        for (int64_t x = 0; x < k.width; x += SPAN) {
            const int64_t count = k.width - x < SPAN ? k.width - x : SPAN, ahead = x + count < k.width;
            for (int64_t y = top; y < bottom; ++y) {
                const float* above = y > top ? lines[(y & 1) ^ 1] : nullptr;
                const Sums row = residual_row(k, y, x, count, ahead, lines[y & 1], above, &sums->cut_off);
                sums->squares += row.squares;
                sums->along_x += row.along_x;
                sums->along_y += row.along_y;
                sums->pixels += count;
                sums->pairs_x += count + ahead - 1;
                sums->pairs_y += y > top ? count : 0;
            }
        }
    }
}

// --- Laplacian, preview, content

void laplacian_rows(const Laplacian& k, int64_t first, int64_t last) {
    float across[SPAN + 2];
    const int64_t inner = k.width - 2;
    for (int64_t y = first; y < last; ++y) {
        const float* __restrict r0 = row_of<float>(k.image, k.image_stride, y);
        const float* __restrict r1 = row_of<float>(k.image, k.image_stride, y + 1);
        const float* __restrict r2 = row_of<float>(k.image, k.image_stride, y + 2);
        float* __restrict out = k.magnitude + y * inner;
        for (int64_t x = 0; x < inner; x += SPAN) {
            const int64_t count = inner - x < SPAN ? inner - x : SPAN;
            for (int64_t i = 0; i < count + 2; ++i) across[i] = second_difference(r0[x + i], r1[x + i], r2[x + i]);
            for (int64_t i = 0; i < count; ++i) out[x + i] = magnitude(second_difference(across[i], across[i + 1], across[i + 2]));
        }
    }
}

template <class Pixel>
void preview_row(const Preview& k, int64_t y) {
    const Pixel* __restrict image = row_of<Pixel>(k.image, k.image_stride, y);
    uint8_t* __restrict out = k.grey + y * k.width;
    const uint8_t* lut = k.lut;
    const float low = k.low, per_range = k.per_range;
    const int64_t width = k.width;  // of its own: a byte that is written could be part of k
    for (int64_t x = 0; x < width; ++x) out[x] = grey((float)image[x], low, per_range);
    if (lut)
        for (int64_t x = 0; x < width; ++x) out[x] = lut[out[x]];
}

void preview_rows(const Preview& k, int64_t first, int64_t last) {
    for (int64_t y = first; y < last; ++y) {
        if (k.pixel_type == UINT8) preview_row<uint8_t>(k, y);
        else if (k.pixel_type == UINT16) preview_row<uint16_t>(k, y);
        else preview_row<float>(k, y);
    }
}

template <class Pixel>
void content_row(const Content& k, int64_t y, Content* sums) {
    const Pixel* __restrict frame = row_of<Pixel>(k.frame, k.frame_stride, y);
    const uint32_t start = (uint32_t)(y * k.width), width = (uint32_t)k.width;
    const float full = k.full;
    uint32_t low = 0, high = 0;
    int32_t count = 0;
    for (uint32_t x = 0; x < width; ++x) count += (float)frame[x] >= full;
    if (k.hashed)
        for (uint32_t x = 0; x < width; ++x) {
            const uint32_t value = bits_of_pixel(frame[x]);
            low += content_low(value, start + x);
            high += content_high(value, start + x);
        }
    sums->low += low;
    sums->high += high;
    sums->full_pixels += count;
}

void content_rows(const Content& k, int64_t first, int64_t last, Content* sums) {
    for (int64_t y = first; y < last; ++y) {
        if (k.pixel_type == UINT8) content_row<uint8_t>(k, y, sums);
        else if (k.pixel_type == UINT16) content_row<uint16_t>(k, y, sums);
        else content_row<float>(k, y, sums);
    }
}

}  // namespace

extern const Loops PS_JOIN(loops_, PS_VARIANT) = {
    stabilise_rows, network_input_rows, sampler_row_rows, normal_rows,  electrons_rows, counts_rows,
    block_means_rows, residual_rows,    laplacian_rows,   preview_rows, content_rows,
};

}  // namespace photonstep
