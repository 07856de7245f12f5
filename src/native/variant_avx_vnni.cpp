#define DALI_AVX_VNNI
#include "lanes_avx2.h"
#include "tiles.h"

const dali::Variant* dali::avx_vnni_variant() {
    static const Variant variant = Kernels<Avx2<true>>::make("avx-vnni");
    return &variant;
}
