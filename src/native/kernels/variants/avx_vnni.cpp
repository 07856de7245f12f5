#define DALI_AVX_VNNI
#include "kernels/kernels.h"
#include "lanes/avx2.h"

const dali::Variant* dali::avx_vnni_variant() {
    static const Variant variant = make_variant<Avx2<true>>("avx-vnni");
    return &variant;
}
