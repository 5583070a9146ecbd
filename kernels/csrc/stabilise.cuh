// Counts to unit-variance coordinates: the generalised Anscombe transform, one multiply-add and a root per pixel.
//
//     z = 2 sqrt(max(0, (f - o) g + 3/8 + r^2)) = sqrt(max(0, f scale + bias)),  scale = 4 g,  bias = 4 (3/8 + r^2 - o g)
//
// Source: Makitalo & Foi 2013, IEEE TIP 22:91.
#pragma once
#include "portable.cuh"

namespace photonstep {

PS_BOTH float stabilised(float counts, float scale, float bias) { return square_root(most(counts * scale + bias, 0.0f)); }

}  // namespace photonstep
