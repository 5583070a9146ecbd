// What the maths headers stand on, for three compilers: C++ on the CPU, nvcc, and NVRTC, which has no standard headers.
//
// Nothing here or in the headers above may be contracted to fused multiply-adds (-ffp-contract=off, --fmad=false): the
// same inputs then give the same bits on every CPU and GPU.
#pragma once

#if defined(__CUDACC_RTC__)
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;
typedef int int32_t;
typedef long long int64_t;
#else
#include <cmath>
#include <cstdint>
#include <cstring>
#endif

#if defined(__CUDACC__)
#define PS_BOTH __host__ __device__ __forceinline__
#elif defined(_MSC_VER)
#define PS_BOTH static __forceinline
#else
#define PS_BOTH static inline __attribute__((always_inline))
#endif

namespace photonstep {

PS_BOTH float least(float a, float b) { return a < b ? a : b; }
PS_BOTH float most(float a, float b) { return a > b ? a : b; }
PS_BOTH float square_root(float x) { return sqrtf(x); }

PS_BOTH uint32_t bits_of(float x) {
#if defined(__CUDA_ARCH__)
    return __float_as_uint(x);
#elif defined(__CUDACC_RTC__)
    return 0;  // the host side of a header that NVRTC compiles for a device only
#else
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
#endif
}

PS_BOTH float float_of(uint32_t bits) {
#if defined(__CUDA_ARCH__)
    return __uint_as_float(bits);
#elif defined(__CUDACC_RTC__)
    return 0.0f;
#else
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
#endif
}

// The nearest whole number to x in [0, 2^22], ties to even: 2^23 + x has no bits left for a fraction.
PS_BOTH uint32_t rounded_half_even(float x) { return bits_of(x + 8388608.0f) & 0x007fffffu; }

// Natural logarithm of a positive, normal float to 2 ulp, with plain arithmetic only, so that a CPU and a GPU agree.
// Range reduction to [sqrt(1/2), sqrt(2)) and the polynomial of Cephes' logf (Moshier, netlib.org/cephes, single.tgz).
PS_BOTH float natural_log(float x) {
    const uint32_t bits = bits_of(x);
    const uint32_t shifted = bits - 0x3f3504f3u;  // sqrt(1/2)
    const float exponent = (float)((int32_t)shifted >> 23);
    const float m = float_of((shifted & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
    const float square = m * m;
    float p = 7.0376836292e-2f;
    p = p * m - 1.1514610310e-1f;
    p = p * m + 1.1676998740e-1f;
    p = p * m - 1.2420140846e-1f;
    p = p * m + 1.4249322787e-1f;
    p = p * m - 1.6668057665e-1f;
    p = p * m + 2.0000714765e-1f;
    p = p * m - 2.4999993993e-1f;
    p = p * m + 3.3333331174e-1f;
    float y = p * m * square;
    y = y + exponent * -2.12194440e-4f;
    y = y - 0.5f * square;
    return (m + y) + exponent * 0.693359375f;
}

// A float's bits as an unsigned number that sorts like it (negative numbers below positive ones); no NaN.
PS_BOTH uint32_t sortable(float x) {
    const uint32_t bits = bits_of(x);
    return bits ^ ((bits & 0x80000000u) ? 0xffffffffu : 0x80000000u);
}

PS_BOTH float from_sortable(uint32_t key) { return float_of(key ^ ((key & 0x80000000u) ? 0x80000000u : 0xffffffffu)); }

}  // namespace photonstep
