// The noise level of a frame from its Laplacian: median of |[1 -2 1] x [1 -2 1]|, over 6 for unit white noise.
//
// Source: Immerkaer 1996, Computer Vision and Image Understanding 64:300 (the operator); median / 0.6745 (robust scale).
#pragma once
#include "portable.cuh"

namespace photonstep {

PS_BOTH float second_difference(float before, float at, float after) { return before - 2.0f * at + after; }
PS_BOTH float magnitude(float x) { return float_of(bits_of(x) & 0x7fffffffu); }

}  // namespace photonstep
