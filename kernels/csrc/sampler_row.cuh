// One row of a sampler's table, fused with EDM's preconditioning of the network's output.
//
//     x0 = c_skip x + c_out F       x' = a x + b x0 + p x0_before + y measurement + n level noise
//
// Source: Karras et al. 2022, arXiv:2206.00364, table 1; the rows are those of `runtime.samplers`.
#pragma once
#include "portable.cuh"

namespace photonstep {

struct Edm {
    float c_in, c_skip, c_out;
};

PS_BOTH Edm edm(float sigma, float sigma_data) {
    const float c_in = 1.0f / square_root(sigma * sigma + sigma_data * sigma_data);
    const float weight = sigma_data * c_in;
    return Edm{c_in, weight * weight, sigma * weight};
}

PS_BOTH float x0_hat(float x, float network, float c_skip, float c_out) { return c_out * network + c_skip * x; }

// EDM's conditioning; a level below sigma_min (a noiseless pixel) counts as it
PS_BOTH float noise_condition(float sigma, float sigma_min) { return natural_log(most(sigma, sigma_min)) * 0.25f; }

}  // namespace photonstep
