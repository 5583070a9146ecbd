// Counter-based normal noise: Philox4x32-10 and the Box-Muller transform.
//
// The four words of counter (x / 4, y, row, 0) belong to the pixels 4 (x / 4) to 4 (x / 4) + 3 of line y: noise depends
// on the key and the pixel's place in the whole frame, never on tiles, threads or the order of evaluation.
//
// Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"; Box & Muller 1958.
#pragma once
#include "portable.cuh"

namespace photonstep {

struct Words {
    uint32_t w[4];
};

PS_BOTH uint32_t high_product(uint32_t a, uint32_t b) { return (uint32_t)(((uint64_t)a * b) >> 32); }

PS_BOTH Words philox(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0, uint32_t k1) {
    for (int round = 0; round < 10; ++round) {
        const uint32_t h0 = high_product(0xD2511F53u, c0), l0 = 0xD2511F53u * c0;
        const uint32_t h1 = high_product(0xCD9E8D57u, c2), l1 = 0xCD9E8D57u * c2;
        c0 = h1 ^ c1 ^ k0;
        c1 = l1;
        c2 = h0 ^ c3 ^ k1;
        c3 = l0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return Words{{c0, c1, c2, c3}};
}

// (0, 1), the 23 highest bits: exact in float32 with the half added, never 0 or 1
PS_BOTH float uniform(uint32_t word) { return ((float)(int32_t)(word >> 9) + 0.5f) * 1.1920928955078125e-7f; }

// sin and cos of 2 pi t for t in (0, 1), to 1e-7: the nearest quarter turn, and polynomials on an eighth of a turn
PS_BOTH void sine_and_cosine_of_turns(float t, float* sine, float* cosine) {
    const int32_t quarter = (int32_t)(t * 4.0f + 0.5f);
    const float angle = (t - (float)quarter * 0.25f) * 6.283185307179586f;
    const float square = angle * angle;
    const float s = angle + angle * square * (-1.6666654611e-1f + square * (8.3321608736e-3f + square * -1.9515295891e-4f));
    const float c = 1.0f - 0.5f * square
        + square * square * (4.166664568298827e-2f + square * (-1.388731625493765e-3f + square * 2.443315711809948e-5f));
    const bool swapped = quarter & 1;
    const float a = swapped ? c : s, b = swapped ? s : c;
    *sine = (quarter & 2) ? -a : a;
    *cosine = ((quarter + 1) & 2) ? -b : b;
}

// Two independent unit normals from two words.
PS_BOTH void box_muller(uint32_t first, uint32_t second, float* cosine_part, float* sine_part) {
    const float radius = square_root(-2.0f * natural_log(uniform(first)));
    float s, c;
    sine_and_cosine_of_turns(uniform(second), &s, &c);
    *cosine_part = radius * c;
    *sine_part = radius * s;
}

// The unit normal of pixel (y, x).
PS_BOTH float normal_at(uint32_t y, uint32_t x, uint32_t row, uint32_t k0, uint32_t k1) {
    const Words words = philox(x >> 2, y, row, 0u, k0, k1);
    float even, odd;
    const bool upper = x & 2u;
    box_muller(upper ? words.w[2] : words.w[0], upper ? words.w[3] : words.w[1], &even, &odd);
    return (x & 1u) ? odd : even;
}

// A frame's key: sums of mixed pixel values, so that order and threads do not matter. Two lanes of 32 bits.
PS_BOTH uint32_t mixed(uint32_t h) {
    h ^= h >> 16;
    h *= 0x85ebca6bu;
    h ^= h >> 13;
    h *= 0xc2b2ae35u;
    h ^= h >> 16;
    return h;
}
PS_BOTH uint32_t bits_of_pixel(uint8_t p) { return p; }
PS_BOTH uint32_t bits_of_pixel(uint16_t p) { return p; }
PS_BOTH uint32_t bits_of_pixel(float p) { return bits_of(p); }
PS_BOTH uint32_t content_low(uint32_t value, uint32_t index) { return mixed(value + index * 0x9E3779B9u); }
PS_BOTH uint32_t content_high(uint32_t value, uint32_t index) { return mixed((value ^ 0x5bd1e995u) + index * 0x632be5abu); }

}  // namespace photonstep
