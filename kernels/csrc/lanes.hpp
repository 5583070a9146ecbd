// Sixteen sums side by side: the same order of additions on every instruction set.
#pragma once

namespace photonstep {
namespace {

#if defined(__GNUC__)
typedef float Lanes __attribute__((vector_size(64)));
[[maybe_unused]] inline Lanes lanes_at(const float* p) {
    Lanes v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}
#else
struct Lanes {
    float v[16];
    float operator[](int j) const { return v[j]; }
    Lanes& operator+=(const Lanes& o) {
        for (int j = 0; j < 16; ++j) v[j] += o.v[j];
        return *this;
    }
};
inline Lanes operator*(const Lanes& a, const Lanes& b) {
    Lanes c;
    for (int j = 0; j < 16; ++j) c.v[j] = a.v[j] * b.v[j];
    return c;
}
[[maybe_unused]] inline Lanes lanes_at(const float* p) {
    Lanes v;
    for (int j = 0; j < 16; ++j) v.v[j] = p[j];
    return v;
}
#endif
[[maybe_unused]] inline float sum_of(const Lanes& lanes) {
    float half[8], sum = 0;
    for (int j = 0; j < 8; ++j) half[j] = lanes[j] + lanes[j + 8];
    for (int j = 0; j < 8; ++j) sum += half[j];
    return sum;
}

}  // namespace
}  // namespace photonstep
