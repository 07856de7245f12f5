#include "kernels/variants.h"

#include <atomic>
#ifdef DALI_X86
#include <cpuid.h>
#endif

namespace dali {

namespace {

bool cpu_has_avx2() {
#ifdef DALI_X86
    unsigned a, b, c = 0, d;  // F16C: older Clangs know no name for it, nor for AVX-VNNI
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __get_cpuid(1, &a, &b, &c, &d) && c >> 29 & 1;
#else
    return false;
#endif
}

bool cpu_has_avx_vnni() {
#ifdef DALI_X86
    unsigned a = 0, b, c, d;
    return cpu_has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && a >> 4 & 1;
#else
    return false;
#endif
}

bool cpu_has_avx512() {
#ifdef DALI_X86
    return cpu_has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
#else
    return false;
#endif
}

bool cpu_has_avx512_vbmi() {
#ifdef DALI_X86
    return cpu_has_avx512() && __builtin_cpu_supports("avx512vbmi");
#else
    return false;
#endif
}

std::atomic<const Variant*>& current() {
    static std::atomic<const Variant*> variant{usable_variants().front()};
    return variant;
}

}  // namespace

std::vector<const Variant*> usable_variants() {
    std::vector<const Variant*> found;
#ifdef DALI_X86
    if (cpu_has_avx512_vbmi()) found.push_back(avx512_vbmi_variant());
    if (cpu_has_avx512()) found.push_back(avx512_variant());
    if (cpu_has_avx_vnni()) found.push_back(avx_vnni_variant());
    if (cpu_has_avx2()) found.push_back(avx2_variant());
#endif
    found.push_back(portable_variant());
    return found;
}

const Variant& current_variant() { return *current().load(); }

bool choose_variant(const std::string& name) {
    for (const Variant* variant : usable_variants()) {
        if (name != variant->name) continue;
        current() = variant;
        return true;
    }
    return false;
}

}  // namespace dali
