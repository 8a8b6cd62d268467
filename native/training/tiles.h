// The convolution of +-1 and both of its gradients by matrix tiles, where the processor has them.
#pragma once

#include "signs.h"

namespace tiles {

// False, with nothing done, on a processor or a system without tiles. Maps and weights are as in
// convolution.cpp; ``x`` and
// ``w`` hold nothing but +1 and -1.
template <class T>
bool convolve(const Convolution& c, const T* x, const T* w, T* z, int threads);

template <class T>
bool input_gradient(const Convolution& c, const T* dz, const T* w, T* dx, int threads);

template <class T>
bool weight_gradient(const Convolution& c, const uint8_t* bits, const T* dz, T* dw, int threads);

}  // namespace tiles
