// Unit-variance coordinates back to photoelectrons and counts.
#pragma once
#include "portable.cuh"

namespace photonstep {

// (z/2)^2 - 3/8 - r^2 with constant = 3/8 + r^2: exact for an estimate of the transform of the clean frame
PS_BOTH float algebraic_inverse(float z, float constant) {
    const float positive = most(z, 0.0f);
    return positive * positive * 0.25f - constant;
}

// Exact unbiased inverse, for an estimate of E[z]; closed form, z below 2 sqrt(3/8) is no light at all.
// Source: Makitalo & Foi 2013, IEEE TIP 22:91; the closed form of Makitalo & Foi 2011, IEEE TIP 20:2697.
PS_BOTH float unbiased_inverse(float z, float readout_variance) {
    const float d = most(z, 1.2247449f), inverse = 1.0f / d;
    const float series = (0.30618622f + (-1.375f + 0.76546554f * inverse) * inverse) * inverse;
    return d * d * 0.25f + series - 0.125f - readout_variance;
}

PS_BOTH float balanced(float electrons, float gain, float shift) { return most(electrons * gain + shift, 0.0f); }
PS_BOTH float to_adu(float electrons, float per_gain, float offset) { return electrons * per_gain + offset; }
PS_BOTH uint32_t clipped(float counts, float largest) { return rounded_half_even(least(most(counts, 0.0f), largest)); }

// Counts as a pixel of the type of the second argument.
PS_BOTH uint8_t as_pixel(float counts, uint8_t) { return (uint8_t)clipped(counts, 255.0f); }
PS_BOTH uint16_t as_pixel(float counts, uint16_t) { return (uint16_t)clipped(counts, 65535.0f); }
PS_BOTH float as_pixel(float counts, float) { return counts; }

}  // namespace photonstep
