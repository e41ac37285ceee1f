// The activations and their derivatives, written once for every value type V: float and double (host and CUDA) and the
// CPU's vectors. A derivative takes the activation's own output, which is what the forward pass keeps.
//
// Error bounds: those of V's exp and tanh (cpu/vec.h; <cmath>'s and CUDA's are documented). sigmoid adds 1 or 2 ulp,
// but see below for CUDA's. Both reach their limits exactly: exp is 0 and infinite where a number ends, tanh 1.
#pragma once

#include <cmath>

#include "function.h"

namespace fusedrnn {

FUSEDRNN_FN float where(bool mask, float a, float b) { return mask ? a : b; }
FUSEDRNN_FN double where(bool mask, double a, double b) { return mask ? a : b; }

template <class V>
FUSEDRNN_FN V sigmoid(V x) {
  using std::exp;
  return V(1) / (V(1) + exp(-x));
}
#ifdef __CUDA_ARCH__
// Without a branch: the hardware's 2^x and 1/x, to (4 + |x|) ulp; below the normal numbers 0.
FUSEDRNN_FN float sigmoid(float x) {
  constexpr float kLog2E = 1.44269504f;
  float power, quotient;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(-x * kLog2E));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(quotient) : "f"(1 + power));
  return quotient;
}
#endif

template <class V>
FUSEDRNN_FN V sigmoid_grad(V y, V dy) {
  return dy * y * (V(1) - y);
}

struct Tanh {
  template <class V>
  FUSEDRNN_FN static V apply(V x) {
    using std::tanh;
    return tanh(x);
  }
  template <class V>
  FUSEDRNN_FN static V grad(V y, V dy) {
    return dy * (V(1) - y * y);
  }
};

struct Relu {  // in select form, so that NaN propagates as in torch.relu
  template <class V>
  FUSEDRNN_FN static V apply(V x) {
    return where(x <= V(0), V(0), x);
  }
  template <class V>
  FUSEDRNN_FN static V grad(V y, V dy) {
    return where(y <= V(0), V(0), dy);
  }
};

}  // namespace fusedrnn
