#include "lanes_avx512.h"
#include "tiles.h"

const dali::Variant* dali::avx512_variant() {
    static const Variant variant = Kernels<Avx512>::make("avx512");
    return &variant;
}
