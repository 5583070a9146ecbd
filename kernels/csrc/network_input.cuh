// Unit-variance coordinates to what a network is fed: model range, input scaling, place and format in its tensor.
#pragma once
#include "portable.cuh"

namespace photonstep {

// u = (z - centre) / span, with per_span = 1 / span and shift = centre / span
PS_BOTH float to_model(float z, float per_span, float shift) { return z * per_span - shift; }
PS_BOTH float from_model(float u, float span, float centre) { return u * span + centre; }

// Where pixel (y, x) lies in a tensor (factor^2, height / factor, width / factor): pixel-unshuffle, channel = (y % f) f + x % f.
PS_BOTH int64_t unshuffled(int64_t y, int64_t x, int64_t height, int64_t width, int64_t factor) {
    const int64_t channel = (y % factor) * factor + x % factor;
    return (channel * (height / factor) + y / factor) * (width / factor) + x / factor;
}

// Bits of the nearest IEEE binary16, ties to even; overflow becomes infinity, NaN stays NaN.
PS_BOTH uint16_t half_bits(float x) {
    const uint32_t bits = bits_of(x);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude >= 0x7f800000u) return (uint16_t)(sign | (magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u));
    if (magnitude >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u);  // rounds to 65536 or more
    if (magnitude < 0x38800000u) {  // below the smallest normal half: adding 0.5 leaves its bits in the low mantissa
        const uint32_t denormal = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;
        return (uint16_t)(sign | denormal);
    }
    const uint32_t odd = (magnitude >> 13) & 1u;
    return (uint16_t)(sign | ((magnitude - 0x38000000u + 0x0fffu + odd) >> 13));
}

// Bits of the nearest bfloat16, ties to even; NaN stays NaN.
PS_BOTH uint16_t bfloat16_bits(float x) {
    const uint32_t bits = bits_of(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((bits >> 16) | 0x0040u);
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

}  // namespace photonstep
