// An image for the screen: 8 bits between two levels.
#pragma once
#include "portable.cuh"

namespace photonstep {

PS_BOTH uint8_t grey(float value, float low, float per_range) {
    const float g = (value - low) * per_range;
    return (uint8_t)rounded_half_even(least(most(g, 0.0f), 255.0f));  // NaN fails both comparisons: black
}

}  // namespace photonstep
