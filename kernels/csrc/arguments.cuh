// What every kernel is told: plain structs, the same in host memory for the CPU library and in device memory for a GPU, so
// that a captured CUDA graph can be run again with other numbers. `kernels/arguments.py` mirrors them field by field.
//
// Images are (height, width); a *_map is one number a pixel, C order, or null where the scalar beside it holds for all.
// Strides are in bytes from row to row; pixels of a row are contiguous. An array without a stride is in C order.
#pragma once
#include "portable.cuh"

namespace photonstep {

enum PixelType { UINT8 = 0, UINT16 = 1, FLOAT32 = 2 };
enum PlaneType { PLANE_FLOAT32 = 0, PLANE_FLOAT16 = 1, PLANE_BFLOAT16 = 2 };

// z = sqrt(max(0, frame scale + bias))
struct Stabilise {
    const void* frame;
    int64_t frame_stride, height, width;
    int32_t pixel_type;
    float scale, bias;
    const float *scale_map, *bias_map;
    float* z;
};

// state = z per_span - shift; plane = c_in state, pixel-unshuffled by factor, as plane_type. Either output may be null.
struct NetworkInput {
    const float* z;
    int64_t height, width, factor;
    float per_span, shift, c_in;
    int32_t plane_type;
    float* state;
    void* plane;
};

// One row of a sampler; see sampler_row.cuh. Levels are sigma (and sigma_next), times sigma_map where there is one.
// Arrays with a weight of 0 may be null. Without a network nothing is walked: plane and condition are made of x.
struct SamplerRow {
    const float *x, *network, *x0_before, *measurement, *sigma_map;
    int64_t height, width;
    float sigma, sigma_next, sigma_data, sigma_min;
    float a, b, n, y, p;
    uint32_t row, key_low, key_high, origin_y, origin_x;
    float *next, *x0;          // x0 may be null
    float *plane, *condition;  // the network's next inputs, c_in(sigma_next) x' and log(sigma_next) / 4; may be null
};

// Unit normal noise of a frame's window that begins at (origin_y, origin_x).
struct Normal {
    int64_t height, width;
    uint32_t row, key_low, key_high, origin_y, origin_x;
    float* noise;
};

// electrons = inverse(u span + centre)
struct Electrons {
    const float* u;
    int64_t u_stride, height, width;
    float span, centre, constant;  // 3/8 + r^2; for the unbiased inverse r^2
    int32_t unbiased;
    const float* constant_map;
    float* electrons;
};

// counts = max(0, electrons gain + shift) per_gain + offset, rounded and clipped into an integer type.
struct Counts {
    const float* electrons;
    int64_t height, width;
    float gain, shift, per_gain, offset;
    int32_t pixel_type;
    const float *per_gain_map, *offset_map;
    void* counts;
    int64_t counts_stride;
    double light;   // out: sum of max(0, electrons gain + shift)
    double* parts;  // a GPU's partial sums; null on the CPU
};

// Means of whole block x block squares of image scale + bias.
struct BlockMeans {
    const void* image;
    int64_t image_stride, height, width, block;
    int32_t pixel_type;
    float scale, bias;
    const float *scale_map, *bias_map;
    float* means;
};

// Sums over bands of `band` rows, one band in `step`, of r = (z - (u span + centre)) per_noise.
struct Residual {
    const float *z, *u, *noise_map;
    int64_t u_stride, height, width, band, step;
    float span, centre, per_noise;
    double squares, along_y, along_x;           // out: sums of r^2, r(y) r(y+1), r(x) r(x+1)
    int64_t pixels, pairs_y, pairs_x, cut_off;  // out: how many of each; pixels with z <= 0
    double* parts;                              // a GPU's partial sums; null on the CPU
};

// Order statistics of finite floats: value[i] is the one of rank[i] (0 is the least).
struct OrderStatistics {
    const float* values;
    int64_t count;
    int32_t ranks;
    int64_t rank[8];
    float value[8];     // out
    uint32_t* scratch;  // a GPU's histograms; null on the CPU
};

// magnitude = |[1 -2 1] x [1 -2 1]|, (height - 2, width - 2)
struct Laplacian {
    const float* image;
    int64_t image_stride, height, width;
    float* magnitude;
};

// grey = lut[round(255 (image - low) / (high - low))]
struct Preview {
    const void* image;
    int64_t image_stride, height, width;
    int32_t pixel_type;
    float low, per_range;
    const uint8_t* lut;
    uint8_t* grey;
};

// Where hashed: two lanes of a sum over all pixels of a hash of value and place. Always: pixels at or above full.
struct Content {
    const void* frame;
    int64_t frame_stride, height, width;
    int32_t pixel_type, hashed;
    float full;
    uint32_t low, high;  // out; a GPU adds to them: 0 before
    int64_t full_pixels; // out; the same
};

// What follows stands in device memory only: on a GPU the frame's range and balance are never read by the host in between.

// to = a window of from that begins at (top, left); beyond the lower and right edge from is mirrored
struct Window {
    const float* from;
    int64_t from_stride, from_height, from_width, top, left;
    float* to;
    int64_t to_stride, height, width;
};

struct Fill {
    float* to;
    int64_t count;
    float value;
};

// How many pixels at or above full lie in every whole block, and in the frame.
struct FullPixels {
    const void* frame;
    int64_t frame_stride, height, width, block;
    int32_t pixel_type;
    float full;
    float* blocks;
    int64_t total;  // out; a GPU adds to it: 0 before
};

// Levels of a frame from four order statistics (the neighbours of two percentiles), smoothed over frames, and the numbers
// that follow from them written where the next kernels read them. Levels of rows are relative before, absolute after.
struct Range {
    const OrderStatistics* statistics;
    double fraction[2], before[2];
    double memory, new_scene, minimum_range, low_u, high_u, degradation;
    float sigma_data, sigma_min;
    int32_t has_before, inputs, conditions, rows;
    NetworkInput* input;
    Fill* condition;
    SamplerRow* row;
    Electrons* electrons;
    Residual* residual;
    double level[2], centre, span, scale;  // out; scale: what levels were multiplied by
};

// The line that brings restored block means to the measured ones, written into counts.
struct Balance {
    const float *restored, *measured, *full;  // full: FullPixels.blocks, or null
    int64_t count;
    double weight, readout_variance, prior_gain, prior_shift, largest_change;
    double* parts;
    Counts* counts;
    double gain, shift;  // out
};

// One frame into the recursive mean of those before it. per_*: 1 / (limit^2 times what is left of a pixel's variance).
struct Fuse {
    const float *z, *mean, *variance;
    int64_t height, width;
    float light_gain, light_shift, emphasis, least_gain;
    float per_point, per_small, per_large, per_motion, per_spread;
    float *out_mean, *out_variance;
};

// level = root of the mean of variance over 9 x 9 px
struct FusedNoise {
    const float* variance;
    int64_t height, width;
    float* level;
};

// s = (z - previous)^2 / 2: the sum of min(s, cut), and the largest mean of s over a whole block
struct Similarity {
    const float *z, *previous;
    int64_t height, width, block;
    float cut;
    float largest_block;  // out
    double sum_cut;       // out
    double* parts;        // scratch of a GPU
};

}  // namespace photonstep
