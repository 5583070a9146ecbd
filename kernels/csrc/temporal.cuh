// Fusion of stabilised frames, pixel by pixel; `kernels/reference/temporal.py` has the formulas and where they come from.
#pragma once
#include "portable.cuh"

namespace photonstep {

constexpr float FLAT = 1e-6f;            // keeps 0 / 0 away where the mean has no slope at all
constexpr float SLOPE_NOISE = 0.1875f;   // variance of a slope of white noise of variance 1

PS_BOTH float between_0_and_1(float x) { return least(most(x, 0.0f), 1.0f); }

// squared where it speaks louder than noise: 0 below the floor (limit^2 times noise), in full from twice that
PS_BOTH float counted(float squared, float per_floor) { return squared * between_0_and_1(squared * per_floor - 1.0f); }

// What a least-squares shift along one axis speaks for: g the slope at the pixel; power and moment are means over a
// window of g^2 and of d g; allowed is limit^2 times the variance of a single difference, shared noise told.
PS_BOTH float seen_moving(float g, float power, float moment, float variance, float per_allowed) {
    const float flat = power + FLAT;
    const float shift = moment / flat;
    const float squared = shift * shift;
    const float moved = squared * between_0_and_1(squared * flat * per_allowed - 1.0f);
    const float real = most(1.0f - 2.0f * SLOPE_NOISE * variance / flat, 0.0f);
    return real * g * g * moved;
}

struct Fused {
    float mean, variance;
};

// off: squared error of the mean in units of d that the tests speak for; times emphasis (1 + variance), in units of z
PS_BOTH Fused fused(float z, float mean, float variance, float off, float emphasis, float least_gain) {
    const float error = variance + emphasis * (1.0f + variance) * off;
    const float gain = most(error / (1.0f + error), least_gain), rest = 1.0f - gain;
    return Fused{mean + gain * (z - mean), rest * rest * error + gain * gain};
}

PS_BOTH float mean_in_light(float mean, float gain, float shift) { return square_root(most(gain * mean * mean + shift, 0.0f)); }
PS_BOTH float variance_in_light(float variance, float factor) { return least(factor * variance, 1.0f); }

}  // namespace photonstep
