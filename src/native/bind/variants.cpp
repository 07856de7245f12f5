#include "kernels/variants.h"

#include "bind/bind.h"

namespace dali {

void bind_variants(nb::module_& m) {
    m.def("variants", [] {
        std::vector<std::string> names;
        for (const Variant* variant : usable_variants()) names.push_back(variant->name);
        return names;
    });
    m.def("variant", [] { return std::string(current_variant().name); });
    m.def("choose_variant", [](const std::string& name) { return choose_variant(name); });
}

}  // namespace dali
