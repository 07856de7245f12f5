#include "kernels/tiles.h"
#include "lanes/avx512_vbmi.h"

// All but lookups of codes is that of AVX-512 alone.
const dali::Variant* dali::avx512_vbmi_variant() {
    static const Variant variant = [] {
        Variant with = *avx512_variant();
        with.name = "avx512-vbmi";
        TileKernels<Avx512Vbmi>::put_coded(with);
        return with;
    }();
    return &variant;
}
